#!/bin/sh
# Training on secret shares by six organisations, each a process that talks over TLS: sh examples/shares_machines.sh [FOLDER [PORT PORT]]
# All run on this machine, so nothing is hidden here. docs/training-on-shares.md explains.
set -eu
folder=${1:-shares-machines}
first=${2:-18443}
second=${3:-18444}
mkdir "$folder"
cd "$folder"
confide split breast-cancer --nodes north,south,west --into tables > split.log
for name in university insurer auditor north south west; do
    mkdir "$name"
    cp tables/schema.toml "$name"
    cat > "$name/job.toml" << END
[job]
name = "together"

[data]
schema = "schema.toml"
nodes = ["north", "south", "west"]

[train]
aggregate = "mpc"
rounds = 5
learning_rate = 1.0

[shares]
servers = ["university", "insurer"]
dealer = "auditor"
address = "wss://127.0.0.1:$second"
batch = 32
insecure_colocated_dealer = true    # for this trial alone
END
done
cp tables/north.csv north/table.csv
cp tables/south.csv south/table.csv
cp tables/west.csv west/table.csv

echo "== the university founds a federation, invites the others, and waits for them"
confide federation init university/identity --address "127.0.0.1:$first" --name Together > init.log 2>&1
invite() { confide federation invite "$@" --federation university/identity --out "$1.invitation" >> init.log 2>&1; }
invite insurer --role helper --host 127.0.0.1
invite auditor --role dealer --host 127.0.0.1
invite north
invite south
invite west
confide train university/job.toml --identity university/identity > university/log 2>&1 &
started=$!
trap 'kill $started 2> /dev/null || true' EXIT
until grep -q "listening on" university/log; do sleep 0.2; done

echo "== the others join, and start the same job"
for name in insurer auditor north south west; do
    confide federation join "$name.invitation" --into "$name/identity" > "$name/join.log" 2>&1
done
for name in insurer auditor; do
    confide train "$name/job.toml" --identity "$name/identity" > "$name/log" 2>&1 &
    started="$started $!"
done
for name in north south west; do
    confide train "$name/job.toml" --identity "$name/identity" --data "$name/table.csv" > "$name/log" 2>&1 &
    started="$started $!"
done
for one in $started; do wait "$one"; done
for name in north south west; do
    echo "== $name"
    grep -e "^wrote" -e "^accuracy" -e "^trained" "$name/log"
done
confide ledger verify university/identity/ledger.jsonl --model north/identity/model.confide | tail -n 2
