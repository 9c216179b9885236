#!/bin/sh
# From the raw files of four banks to a served model that spots card fraud: sh examples/banks/run.sh [FOLDER]
# Makes the folder (`banks-example` if none is named) and everything in it; takes about two minutes. docs/tutorials/banks.md explains.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-banks-example}
mkdir "$folder"
cd "$folder"

server=""  # ends with this script
trap 'test -z "$server" || kill "$server" 2> /dev/null || true; wait' EXIT
has() { for try in $(seq 300); do grep -q "$1" "$2" && return; sleep 0.1; done; cat "$2"; exit 1; }  # wait for a line

echo "== each bank exports its payments, in its own way"
python "$here/make_data.py" data
cp "$here"/*.toml .
mkdir out

echo "== each bank looks at its own table beside the common schema; no value is shown"
for bank in alpine baltic central delta; do
    confide node check --data "$bank.toml" --schema schema.toml > "$bank.log" || { cat "$bank.log"; exit 1; }
    grep "^classes" "$bank.log" | sed "s/^/$bank: /"
done

train() { confide train "$1.toml" 2> "$1.log" > "$1.out" || { cat "$1.log"; exit 1; }; grep -A 4 "^accuracy" "$1.out"; }
ask() {  # MODEL BACKEND: serve it, and let a fifth bank ask about today's payments
    confide serve "out/$1.confide" --trust out/signing.pem.pub --backend "$2" --port 0 > serve.log 2> serve.err & server=$!
    has "listening on" serve.log
    url=$(sed -n 's/^listening on //p' serve.log)
    confide predict "$url" data/today.csv --backend "$2" --schema schema.toml --out "out/$1.csv" 2> predict.log || { cat predict.log; exit 1; }
    echo "$(($(wc -l < "out/$1.csv") - 1)) answers in out/$1.csv"
    kill "$server" && wait "$server" || true
    server=""
}

echo "== train trees together with differential privacy, evaluate on payments that nobody trained on"
train job
grep "^importance of columns" job.out

echo "== what the model file says of itself"
confide inspect out/fraud.confide --trust out/signing.pem.pub | head -n 1

echo "== serve it; a fifth bank asks about today's payments, in the clear"
ask fraud plain

echo "== the same with a logistic model, which the bank asks encrypted: the server does not see the payments"
train logistic
ask logistic he
