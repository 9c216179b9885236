#!/bin/sh
# Three hospitals and an analyst on one machine, from nothing to a served model, with every process that a federation has.
#     sh examples/federation.sh [PORT]
# Makes the folder `federation-example` here. On machines of their own the commands are the same (docs/federation.md).
set -eu
port=${1:-8443}
mkdir federation-example
cd federation-example

started=""  # processes, which end with this script
trap 'kill $started 2> /dev/null || true; wait' EXIT
has() { for try in $(seq 300); do grep -q "$1" "$2" && return; sleep 0.1; done; cat "$2"; exit 1; }  # wait for a line

echo "== the coordinator's operator: found, invite, listen"
confide split breast-cancer --nodes north,south,west --into trial
confide federation init coordinator --address "127.0.0.1:$port"
for name in north south west; do
    confide federation invite "$name" --federation coordinator --out "$name.invitation" 2> /dev/null
done
confide federation invite ana --role analyst --federation coordinator --out ana.invitation 2> /dev/null
confide coordinator --federation coordinator > coordinator.log 2>&1 & started="$started $!"
has "listening" coordinator.log

echo "== each hospital: join, compare fingerprints by telephone, start its node"
for name in north south west; do
    confide federation join "$name.invitation" --into "$name" 2> /dev/null
    confide node --identity "$name" --data "trial/$name.csv" --policy trial/policy.toml --once > "$name.log" 2>&1 &
    started="$started $!"
done
confide federation roster coordinator

echo "== the analyst: join, hand a job in"
confide federation join ana.invitation --into ana 2> /dev/null
confide submit trial/job.toml --identity ana --out model.confide --ledger ledger.jsonl > ana.log 2>&1 & analyst=$!
started="$started $analyst"

echo "== a person at each hospital: look at the job, agree"
for name in north south west; do
    has "confide node show" "$name.log"
    confide node approve --yes --identity "$name"
done
wait "$analyst" || { cat ana.log; exit 1; }
tail -n 2 ana.log

echo "== anybody: the record, as north remembers it; the model each hospital has"
confide ledger verify ledger.jsonl --model model.confide --head north/node.db
has "has ended" north.log
cmp model.confide north/model.confide

echo "== serve it, ask it without showing the question"
key=$(sed -n 's/^coordinator_identity = "\(.*\)"/\1/p' ana/member.toml) # whose signature the model must have
confide serve model.confide --trust "$key" --port 0 > serve.log 2> serve.err & started="$started $!"
has "listening on" serve.log
confide predict "$(sed -n 's/^listening on //p' serve.log)" trial/test.csv --out predictions.csv 2> /dev/null
echo "$(($(wc -l < predictions.csv) - 1)) answers, which the server has not seen"

echo "== west leaves, for ever"
confide federation revoke west --federation coordinator
