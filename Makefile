# Two commands on a fresh machine: `make demo` and `make test`. Needs Python >= 3.11 and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
PIP_FLAGS ?=

.PHONY: demo test lint fast clean

demo: $(STAMP)
	$(BIN)/nemo-edge build engines/demo.toml

test: lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/readme.py --check

fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nemo-edge needs Python 3.11 or newer, e.g. make PYTHON=python3.12 demo")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) engines/out .mypy_cache .pytest_cache .ruff_cache
