#!/bin/sh
# Training on secret shares, from rows at four hospitals and from columns at two: sh examples/shares.sh [FOLDER]
# Makes the folder (`shares-example` if none is named) and everything in it. docs/training-on-shares.md explains.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-shares-example}
mkdir "$folder"
cp "$here"/shares/*.toml "$folder"
python "$here/shares/make_tables.py" "$folder"
cd "$folder"

echo "== four hospitals have rows of the same columns; the model is opened in the end"
confide train hospitals.toml 2> hospitals.log | grep -e "^training on shares" -e "^each step" -e "^accuracy" -e "^trained"

echo "== a clinic and a laboratory have columns of the same patients; the model stays shares"
confide train columns.toml 2> columns.log | grep -e "^people" -e "^trained" -e "^wrote"
ls shares
