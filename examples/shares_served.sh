#!/bin/sh
# A model that is trained on shares, stays shares, and answers: two servers with a half each, a dealer and a clinic.
#     sh examples/shares_served.sh [PORT]
# Makes the folder `shares-served-example` here. Everything runs on one machine, so every report says INSECURE.
set -eu
port=${1:-8443}
here=$(cd "$(dirname "$0")" && pwd)
mkdir shares-served-example
cd shares-served-example

started=""  # processes, which end with this script
trap 'kill $started 2> /dev/null || true; wait' EXIT
has() { for try in $(seq 600); do grep -q "$1" "$2" && return; sleep 0.1; done; cat "$2"; exit 1; }  # wait for a line
trial=--insecure-colocated-dealer

echo "== train on shares; no weight is opened"
cat > job.toml << END
[data]
set = "breast-cancer"

[train]
aggregate = "mpc"
rounds = 5
learning_rate = 0.5

[shares]
servers = ["university", "insurer"]
dealer = "auditor"
folder = "both"
END
confide train job.toml 2> train.log | grep -e "^trained" -e "^wrote"

echo "== each server gets its own half, and what is public"
mkdir university insurer
cp both/model.json university
cp both/model.json insurer
mv both/server-0.npz university
mv both/server-1.npz insurer
rm -r both
confide inspect insurer | grep "half of"

echo "== the university founds a federation and serves; insurer and auditor take part"
confide federation init federation --address "127.0.0.1:$port"
confide federation invite insurer --role helper --host 127.0.0.1 --federation federation --out insurer.invitation 2> invite.log
confide federation invite auditor --role dealer --host 127.0.0.1 --federation federation --out auditor.invitation 2> invite.log
confide federation invite clinic --role client --federation federation --out clinic.invitation 2> invite.log
confide serve university --backend mpc-outsourced --federation federation --dealer auditor --helper insurer \
    $trial > serve.log 2>&1 & started="$started $!"
has "listening" serve.log
confide federation join auditor.invitation --into auditor-identity 2> join.log
confide dealer auditor-identity --listen 127.0.0.1:0 $trial > dealer.log 2>&1 & started="$started $!"
confide federation join insurer.invitation --into insurer-identity 2> join.log
confide helper insurer-identity --shares insurer --listen 127.0.0.1:0 $trial > helper.log 2>&1 & started="$started $!"
has "is served under" serve.log

echo "== a clinic asks"
confide federation join clinic.invitation --into clinic 2> join.log
confide predict "wss://127.0.0.1:$port" "$here/patients.csv" --identity clinic $trial 2> predict.log
