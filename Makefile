# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := build/types/firetrace

.PHONY: help env demo test backends test-backends lint types imports versions format audit bench gpu-check torture ci clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

# Holds for what builds firetrace, too; newer versions of pip look for that in the second one.
PINNED := PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt

# Installed again only when what it is made from has changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PINNED) $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

env: $(READY) ## make the environment in .venv

demo: $(READY) ## train the sample under the live app; leaves a journal and a Chrome trace
	$(BIN)/python samples/demo.py

SPREAD := --numprocesses logical --dist loadfile
# Beside other tests, pictures may be taken too early and seconds be counted too long.
ALONE := tests/test_pictures.py tests/test_live_data.py

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(SPREAD) $(ALONE:%=--ignore %)
	$(BIN)/python -m pytest $(ALONE)

# Backends that people run. Each has an environment of its own: what they depend on conflicts.
BACKENDS := build/backends
$(BACKENDS)/%/.ready: constraints-backends.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint $< $*
	touch $@

backends: $(foreach name,mlflow arize-phoenix rotel,$(BACKENDS)/$(name)/.ready) ## install them

test-backends: $(READY) backends ## send to real backends, read back
	FIRETRACE_BACKENDS=$(BACKENDS) $(BIN)/python -m pytest $(SPREAD) tests/backends

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

# Each release of ignite is laid beside the environment, which has the newest.
IGNITES := 0.5.0.post2 0.5.1 0.5.2 0.5.3 0.5.4
build/ignite/%: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ pytorch-ignite==$*

versions: $(addprefix build/ignite/,$(IGNITES)) ## test the recording with every ignite from 0.5.0 on
	for version in $(IGNITES); do \
		echo "pytorch-ignite $$version" && \
		PYTHONPATH=build/ignite/$$version IGNITE_VERSION=$$version $(BIN)/python -m pytest -q $(SPREAD) \
			tests/test_ignite.py tests/test_handler.py tests/test_own_spans.py || exit 1; \
	done

# It has an environment of its own: what it depends on is none of ours.
AUDIT := build/audit
$(AUDIT)/.ready:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check --no-compile pip-audit==2.10.1
	touch $@

audit: $(AUDIT)/.ready ## ask for known vulnerabilities of what is pinned
	$(PYTHON) .ci/audit $(AUDIT)/bin/pip-audit constraints.txt

bench: $(READY) ## measure against the peers; prints ratios
	$(BIN)/python -m bench

# With the python that has torch for CUDA, monai and ignite, as it is: PYTHON=... GPU=--quick.
gpu-check: $(TYPES)/__init__.py ## check device time against torch's profiler; needs an NVIDIA GPU
	PYTHONPATH=$(CURDIR)/build/types$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m bench.gpu $(GPU)

# TORTURE=--short is the form that every change must pass.
torture: $(READY) ## kills, full disks, bad journals, faults of its own: counts what goes wrong
	$(BIN)/python -m torture $(TORTURE)

ci: lint types imports audit test versions test-backends torture ## everything that must hold

clean: ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
