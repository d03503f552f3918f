# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := build/types/firetrace

.PHONY: help env demo test lint types imports format bench ci clean
help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/'

# Installed again only when what it is made from has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

env: $(READY) ## make the environment in .venv

demo: $(READY) ## train the sample under the live app; leaves a journal and a Chrome trace
	$(BIN)/python samples/demo.py

test: $(READY) ## run the tests
	$(BIN)/python -m pytest

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY) ## mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The folders are rooms; type checkers and the import linter want them under their import names.
$(TYPES)/__init__.py:
	mkdir -p $(TYPES)
	ln -sfn ../../../root/py.typed $(TYPES)/py.typed
	for room in tracer exporters tui; do ln -sfn ../../../$$room $(TYPES)/$$room; done
	ln -sfn ../../../root/__init__.py $@

types: $(READY) $(TYPES)/__init__.py ## mypy --strict, tests and samples too
	$(BIN)/mypy

imports: $(READY) $(TYPES)/__init__.py ## the import contracts
	PYTHONPATH=build/types $(BIN)/lint-imports --no-cache

bench: $(READY) ## measure against the peers; prints ratios
	$(BIN)/python -m bench

ci: lint types imports test ## everything that must hold

clean: ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
