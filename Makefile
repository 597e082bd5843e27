# Everything runs in .venv, which is made on first use and renewed when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := bind_core storage tasks flows data tests bench examples process_simulations.py add_large_scale.py

.PHONY: help install demo tutorial serve test soak lint types bench pylians clean

help:
	@echo "make demo     a small data set from a mock suite, in ./demo"
	@echo "make tutorial from a mock suite to a box painted by a network, with plots, in build/tutorial; see docs/training.md"
	@echo "make serve    Prefect's UI, the deployments and a worker, in ./served, until Ctrl-C; see docs/operations.md"
	@echo "make test     lint, types and all tests"
	@echo "make soak     runs killed at random moments, for hours; see docs/reliability.md"
	@echo "make bench    speed, as ratios"
	@echo "make install  the environment alone, in $(VENV)"
	@echo "make pylians  the field's reference CIC, compiled from source (5 minutes)"
	@echo "make clean    remove the environment, the demo and the tutorial"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and none is on the search path. Install one, or say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing bind-data into $(VENV) (about a minute)"
	@$(PIP) install --constraint constraints.txt --editable '.[mpi]'
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	@$(PIP) install --constraint constraints.txt --editable '.[mpi,dev]'
	@touch $@

$(VENV)/.torch: $(VENV)/.installed
	@echo "Installing PyTorch into $(VENV)"
	@$(PIP) install --constraint constraints.txt --editable '.[mpi,torch]'
	@touch $@

# The release ships C code that newer Pythons reject, so it is regenerated, with the Cython and numpy that it builds with.
$(VENV)/.pylians: $(VENV)/.installed
	@echo "Compiling Pylians (about 5 minutes)"
	@$(PIP) install --constraint constraints.txt 'cython<3' 'setuptools<81' wheel pyfftw scipy
	@CYTHON_FORCE_REGEN=1 $(PIP) install --constraint constraints.txt --no-build-isolation --no-deps 'Pylians==0.12'
	@touch $@

install: $(VENV)/.installed

pylians: $(VENV)/.pylians

demo: $(VENV)/.installed
	@$(BIN)/bind-data demo demo

tutorial: $(VENV)/.torch
	@$(BIN)/python examples/paint_a_box.py build/tutorial

# It is the process itself, and not a child of a shell, so that one signal ends all.
serve: $(VENV)/.installed
	@exec $(BIN)/bind-data serve served

test: lint types $(VENV)/.pylians
	@$(BIN)/python -m pytest --numprocesses 2

soak: $(VENV)/.developed
	@BIND_SOAK_RUNS=$${BIND_SOAK_RUNS:-300} $(BIN)/python -m pytest --timeout 0 tests/test_soak.py

lint: $(VENV)/.developed
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.developed
	@$(BIN)/mypy
	@$(BIN)/mypy examples/paint_a_box.py

bench: $(VENV)/.developed $(VENV)/.pylians
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV) demo build
