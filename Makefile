# The everyday commands; each does all its own set-up. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
TIMES ?= 20
SLICE ?= 0/1
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help demo test quick check lint types site docs browser bench flakes interrupts fuzz clean

help:            ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# the constraints pin torch's CPU build and everything that numbers in the docs depend on
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tensorboard,html,loggers,examples,docs,dev]'
	touch $(STAMP)

demo: $(STAMP)   ## the main job: toy default and founding question; leaves a TensorBoard folder in runs/
	$(BIN)/python docs/examples/demo.py runs

# in the order of `testpaths` and with one seed, so that it passes again where it passed; `make flakes` is there for other orders and seeds
test: $(STAMP)   ## all tests, the documentation's examples among them
	$(BIN)/python -m pytest -q -p no:cacheprovider -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  --randomly-dont-reorganize --randomly-seed 0

quick: $(STAMP)  ## everyday work: hand-written traces, architecture, bad input; no training (under a minute)
	$(BIN)/python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile -m "not trains" \
	  tests/test_architecture.py tests/core tests/seeds tests/checks tests/reports tests/cli tests/training/test_bad_input.py \
	  --ignore-glob='*_probe.py' --ignore=tests/reports/html/test_page_browser.py --ignore=tests/checks/loop \
	  --ignore=tests/checks/data/test_epochs.py

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/python docs/build/type_stub.py
	$(BIN)/mypy

site: $(STAMP)   ## the documentation's site in build/site, which opens from disk
	$(BIN)/python docs/build/type_stub.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: site       ## the site and its checks, which `make test` runs too
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/docs

browser:         ## a headless Chromium for the tests that open pages, from the system's packages, unless one is there
	.ci/browser

check: lint types site test  ## what CI runs

bench: $(STAMP)  ## the benchmarks behind the numbers in the docs (about half an hour)
	for script in startup overhead error_rates; do $(BIN)/python benchmarks/$$script.py || exit 1; done

flakes: $(STAMP) ## the tests again and again, in another order each time, until one fails (TIMES=20: about two hours on 2 cores)
	for i in $$(seq $(TIMES)); do \
	  $(BIN)/python -m pytest -q -p no:cacheprovider -n 2 -p randomly --dist loadfile tests || exit 1; done

interrupts: $(STAMP)  ## an interrupt at every line of restoring and of a small fine-tune, and 300 signals (many hours)
	FTCHECK_EVERY_LINE=1 $(BIN)/python -m pytest -q -p no:cacheprovider --timeout 0 tests/training/test_interrupts.py \
	  tests/training/test_interrupted_probes.py tests/reports/test_interrupted_writers.py

fuzz: $(STAMP)   ## every argument of every public callable with each of 90 hostile values (about an hour); SLICE=3/20: a slice
	FTCHECK_SLICE=$(SLICE) $(BIN)/python -m pytest -q -p no:cacheprovider --timeout 0 tests/test_every_argument.py

clean:           ## remove the virtual environment and all that was made
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
