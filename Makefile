# Everything runs from .venv, which these targets make and keep in step with pyproject.toml and constraints.txt.
#
#   make serve      set up once, then serve on http://127.0.0.1:8000
#   make test       the test suite without its slow cases
#   make test-all   the test suite, nothing left out
#   make aot        compile every kernel that changed for every GPU architecture, on any Linux; writes the table of it
#   make check      format, lint, types, import rules
#   make chaos      kill, stop, fill and lock what can be under load; ARGS="--seed N" for another order
#   make install    the development environment alone
#
#   TORCH_INDEX=URL package index to look for torch in, besides the usual one. On Linux the usual one has the CUDA build
#                   (several GB): for a laptop give the CPU index that the install page of pytorch.org names.
#   PYTHON=...      the interpreter that .venv is made with, 3.11 or newer
#   ARGS=...        more arguments for `darkroom serve` or pytest

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PINS := pyproject.toml constraints.txt
# A file's tests share what they set up, so they stay together. More processes than four would fill a laptop's memory.
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

# Idle OpenMP threads sleep instead of spinning: two runtimes (torch, ONNX Runtime) share the cores.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0

.DELETE_ON_ERROR:
.PHONY: serve test test-all aot check chaos install clean

serve: $(VENV)/.engines
	$(BIN)/darkroom serve $(ARGS)

test: $(VENV)/.test
	@$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-all: $(VENV)/.test
	@$(PYTEST) $(ARGS)

aot: $(VENV)/.test
	$(BIN)/python -m benchmarks.aot $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run

chaos: $(VENV)/.test
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

install: $(VENV)/.test

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Darkroom needs Python 3.11 or newer; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.worker: $(PINS) | $(VENV)/.python
	@echo "Installing into $(VENV); the first time takes minutes."
	$(INSTALL) --editable '.[worker,video]'
	@touch $@

$(VENV)/.test: $(PINS) | $(VENV)/.python
	@echo "Installing into $(VENV); the first time takes minutes."
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.worker

$(VENV)/.engines: $(VENV)/.worker $(shell find engines models/zoo -type f -not -name '*.pyc' 2>/dev/null)
	$(BIN)/darkroom engines build --all
	@touch $@
