# Needs Python 3.11, make and pip; everything else is installed into .venv.
PYTHON ?= python3.11

VENV := .venv
BIN := $(VENV)/bin
BENCH := $(VENV)/bench
TRACKERS := $(VENV)/trackers
PIP := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
MANIFESTS := pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)

# Tests start hundreds of interpreters, each of which would else compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run test lint types imports bench soak docs clean

help:  ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the manifests that it was installed from, so a second call installs nothing.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP) --editable .
	@touch $@

$(VENV)/.test: $(MANIFESTS) | $(BIN)/python
	$(BIN)/python $(PIP) --editable '.[test,dev]'
	$(BIN)/python $(PIP) --no-deps $(addprefix --editable ./,$(PLUGINS))
	@touch $@ $(VENV)/.run

# What the tests of the trackers need: W&B, MLflow and its server, Hugging Face's client, and of TensorBoard what reads
# event files. In a venv of its own that also sees .venv's packages: NumPy makes each import of torch half a second slower.
$(TRACKERS)/.packages: $(VENV)/.test
	$(PYTHON) -m venv $(TRACKERS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(TRACKERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/trainrun-venv.pth"
	$(TRACKERS)/bin/python $(PIP) wandb huggingface_hub mlflow-skinny sqlalchemy alembic flask flask-cors
	$(TRACKERS)/bin/python $(PIP) --no-deps tensorboard numpy absl-py
	@touch $@

# The peers of the benchmarks live in a venv of their own that also sees .venv's packages, so those stay as tested.
# Without dependencies: peers.txt lists what the benchmark needs of them, and torch is the one in .venv.
$(BENCH)/.peers: $(VENV)/.test tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(BENCH)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/trainrun-venv.pth"
	$(BENCH)/bin/python $(PIP) --no-deps --requirement tests/benchmarks/peers.txt
	@touch $@

install: $(VENV)/.test $(TRACKERS)/.packages  ## everything that the tests and the documentation need

run: $(VENV)/.run  ## train on handwritten digits with two workers
	$(BIN)/trainrun launch train.toml

test: $(VENV)/.test  ## every check, then the tests
	@$(MAKE) --no-print-directory --jobs 2 lint imports types $(TRACKERS)/.packages
	@# Most of a launch is waiting, so that more tests at once than there are cores end sooner.
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	$(BIN)/lint-imports

bench: $(BENCH)/.peers  ## overhead of loop and command line, starts and restarts, throughput, beside others'
	$(BENCH)/bin/python tests/benchmarks/loop_overhead.py
	$(BIN)/python tests/benchmarks/checks.py
	$(BIN)/python tests/benchmarks/command_line.py
	$(BIN)/python tests/benchmarks/start.py
	$(BIN)/python tests/benchmarks/decision_cost.py
	$(BIN)/python tests/benchmarks/checkpoint_stall.py
	$(BIN)/python tests/benchmarks/throughput.py
	$(BIN)/python tests/benchmarks/monitoring.py
	$(BIN)/python tests/benchmarks/skip.py

soak: $(VENV)/.test $(TRACKERS)/.packages  ## the long tests, then hundreds of launches, kills and races; SOAK=20 make soak for fewer
	$(BIN)/pytest -m long
	$(BIN)/python tests/soak/soak.py

docs: $(VENV)/.test  ## write the pages that are made from the code
	$(BIN)/python docs/generate.py

clean:  ## remove what make made; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
