# `make demo` and `make test` need Python 3.11, pip and git; each sets up .venv once.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.ready
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test check fix docs bench setup clean

demo: $(STAMP)            ## the whole job on the embedded model: runs/demo/report/index.html
	$(BIN)/recoup demo

test: $(STAMP) check      ## lint, types, stale documents, tests
	$(BIN)/pytest

check: $(STAMP)           ## lint, types, stale documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.docs --check

fix: $(STAMP)             ## format, and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)            ## generate docs/cli.md and the numbers of the README from code and results/
	$(BIN)/python -m tools.docs

bench: $(STAMP)           ## side by side with peers, printed as ratios
	$(BIN)/python -m benchmarks

setup: $(STAMP)           ## .venv with the exact versions of requirements/

$(STAMP): requirements/lock.txt requirements/no-deps.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:                    ## forget the environment and the caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
