# Every target sets up what it needs: `make demo` and `make test` work on a bare machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help install demo test check format docs e2e crash gpu bench clean
help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

install: $(READY)  ## make .venv with everything, at the tested versions
$(READY): .ci/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r .ci/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY)  ## train, evaluate, merge and generate on what the repository ships, offline
	$(BIN)/ftune train recipes/quickstart.yaml --output-dir runs/demo --overwrite --offline
	$(BIN)/ftune eval runs/demo --offline --quiet
	$(BIN)/ftune merge runs/demo --offline --quiet
	$(BIN)/ftune generate runs/demo/merged --prompt "ROMEO:" --raw --max-new-tokens 40 --offline --quiet

test: check  ## lint, types and all fast tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not e2e and not crash"

check: $(READY)  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## write the generated pages: every recipe key, every command
	$(BIN)/python docs/generate.py

e2e: $(READY)  ## the full matrix of laws, in real processes
	$(BIN)/python -m pytest -q -n $(WORKERS) -m e2e

crash: $(READY)  ## kill and break runs at every durable operation
	$(BIN)/python -m pytest -q -n $(WORKERS) -m crash

gpu: $(READY)  ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu -rs

BENCH ?=
bench: $(READY)  ## beside other trainers, in turn: hours; BENCH="--quick" tries it; docs/benchmark.md
	$(BIN)/python tests/bench/startup.py
	$(BIN)/python tests/bench/leakage.py
	$(BIN)/python tests/bench/tricks.py
	$(BIN)/python tests/bench/speed.py $(BENCH)

clean:  ## delete the environment and the demo's run
	rm -rf $(VENV) runs/demo
