# The commands a person types. Everything installs itself into VENV on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Storms of `make chaos`; one fails by its number: python -m sim chaos --seed N
SEEDS ?= 3000
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint bench chaos proto clean

help:
	@echo "make demo    one question through prefill, transfer, decode, spill and resume"
	@echo "make test    all tests but the long ones of make chaos"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make bench   all benchmarks, with a table"
	@echo "make chaos   thousands of simulated storms, the tests that kill, cut and corrupt, new examples"
	@echo "make proto   regenerate eastwest/v1 from proto/"

demo: $(VENV)/.all
	@$(BIN)/eastwest demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -m 'not chaos'

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(BIN)/python -m bench all

chaos: $(VENV)/.test
	$(BIN)/python -m sim chaos --seeds $(SEEDS)
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m pytest -m 'not chaos' --hypothesis-profile=explore tests/property tests/unit

proto: $(VENV)/.lint
	$(BIN)/python -m eastwest.generate_proto

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.created:
	@echo "creating a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=…")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.%: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing what '$*' needs (the first time takes a few minutes)"
	@$(PIP) -e '.[$*]'
	@touch $@
