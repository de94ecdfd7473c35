# Every target sets up what it needs: `make demo` and `make test` work on a bare machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help install demo test check format docs e2e crash gpu bench starter clean
help:  ## list the targets
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

install: $(READY)  ## make .venv with everything, at the tested versions
$(READY): .ci/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r .ci/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

ASKED := My card has not come yet. When will it be here?
demo: $(READY)  ## ask a small model, teach it by LoRA, score, merge and ask again: offline, on what the repository ships
	@echo "--- before: what the model says, and how many answers are right"
	$(BIN)/ftune generate recipes/quickstart.yaml --prompt "$(ASKED)" --max-new-tokens 12 --offline --quiet
	$(BIN)/ftune eval recipes/quickstart.yaml --offline --quiet
	@echo "--- training"
	$(BIN)/ftune train recipes/quickstart.yaml --output-dir runs/demo --overwrite --offline
	@echo "--- after"
	$(BIN)/ftune eval runs/demo --offline --quiet
	$(BIN)/ftune merge runs/demo --offline --quiet
	$(BIN)/ftune generate runs/demo/merged --prompt "$(ASKED)" --max-new-tokens 12 --offline --quiet
	@echo "--- now yours:"
	@echo "$(BIN)/ftune recipes ls                                      # what else there is"
	@echo "$(BIN)/ftune data recipes/quickstart.yaml --set data.train=YOURS.csv -n 2   # how the model would read your rows"
	@echo "$(BIN)/ftune train recipes/quickstart.yaml --set model=HuggingFaceTB/SmolLM2-135M-Instruct --output-dir runs/better"

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
	$(BIN)/python tests/bench/durability.py $(if $(findstring --quick,$(BENCH)),--share 0.05)
	$(BIN)/python tests/bench/speed.py $(BENCH)

TEXT := runs/starter_text
starter: $(READY)  ## make builtin:starter anew, from the network's packages: hours, goes on where it was cut; its card says how long
	test -d $(TEXT)/instruct || $(BIN)/python recipes/starter/gather.py --out $(TEXT) --shared ../shared/data
	OMP_NUM_THREADS=1 $(BIN)/ftune train recipes/pretrain_starter.yaml --offline
	OMP_NUM_THREADS=1 $(BIN)/ftune train recipes/instruct_starter.yaml --offline
	$(BIN)/python recipes/starter/pack.py runs/instruct_starter
	OMP_NUM_THREADS=1 $(BIN)/python recipes/starter/measure.py --text $(TEXT)

clean:  ## delete the environment and the demo's run
	rm -rf $(VENV) runs/demo
