# One command a chore. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The checkout never comes before the installed packages on the module path.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo up test check format proto train-tiny bench-kernels bench-folding bench-reader load gpu clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.local ## Make .venv with all that the platform needs to run

$(VENV)/.local: pyproject.toml scripts/install_torch.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "memfold needs Python 3.11 or later; name it with PYTHON=..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "memfold needs Python's venv (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing torch ..."
	@scripts/install_torch.sh $(BIN)/python
	@echo "Installing memfold ..."
	@$(BIN)/python -m pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.test: $(VENV)/.local
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "Installing the developers' tools ..."
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.local ## Show the main job: a conversation in, answers from its memory out
	@$(BIN)/memfold demo $(ARGS)

up: $(VENV)/.local ## Run the platform here until ctrl-C; BACKBONE= and ADAPTER= serve another model
	@$(BIN)/memfold up $(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(ADAPTER),--adapter $(ADAPTER)) $(ARGS) \
		|| test $$? -eq 130

# Two at a time: much of a test's time is waiting for processes.
test: $(VENV)/.test ## Run the tests
	@$(BIN)/pytest --numprocesses 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## Lint, types, import rules, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python scripts/generate_proto.py --check

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## Generate the code of the protos
	$(BIN)/python scripts/generate_proto.py

train-tiny: $(VENV)/.test ## Train models/memfold-tiny anew
	$(BIN)/python -m memfold_training.tiny $(ARGS)

faults: $(VENV)/.test ## Put the platform through every fault there is a test for, in short
	@$(BIN)/pytest --numprocesses 2 --dist loadfile tests/faults $(ARGS)

faults-long: $(VENV)/.test ## The same for twenty minutes, then a hundred thousand mutated requests; ARGS="--minutes 5 --seed 1"
	@PYTHONPATH=tests/faults $(BIN)/python -P -m memfold_faults.long $(ARGS)
	@$(BIN)/pytest -q tests/faults/test_state_machine.py --hypothesis-profile=long

bench-reliability: $(VENV)/.test ## Measure appends, bytes in Redis, forks, rollbacks and removals
	@for one in append redis_bytes history removing; do $(BIN)/python benchmarks/$$one.py || exit 1; done

bench-kernels: $(VENV)/.test ## Measure the kernels on one thread of this processor
	@$(BIN)/python benchmarks/cpu.py $(ARGS)

bench-folding: $(VENV)/.test ## Measure what folding costs: tokens run for each token appended
	@$(BIN)/python benchmarks/folding.py $(ARGS)

bench-reader: $(VENV)/.test ## Measure the reader's engine against its peers on one thread of this processor
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/reader.py $(ARGS)

load: $(VENV)/.test ## Put the whole platform under load for ten minutes; ARGS="--minutes 60"
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/load.py $(ARGS)

# Without .venv, any Python that has the libraries will do; nothing of ours need be installed.
GPU_PYTHON = $(or $(wildcard $(BIN)/python),$(PYTHON))

gpu: ## Test and measure the kernels on this machine's GPU
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || \
		{ echo "There is no GPU here: make gpu needs a CUDA device, and a Python with torch, triton, transformers and pytest"; exit 1; }
	@PYTHONPATH=src:kernels $(GPU_PYTHON) benchmarks/gpu.py $(ARGS)

clean: ## Remove what the other commands made
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
