# Everything a person or CI does here. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUF := npx --yes @bufbuild/buf@1.75.0
GRPCURL_VERSION := v1.9.1
TOOLS := .tools
PROJECTS := pyproject.toml $(wildcard sdk/python/pyproject.toml services/*/pyproject.toml cli/pyproject.toml)

# Builds of our own wheels are pinned too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test unit integration check fmt lint types imports sizes generate generate-check \
        proto-lint proto-breaking proto-promise bench grpcurl up down dev upgrade clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- set-up ---------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-stamp: $(BIN)/python requirements.txt constraints.txt $(PROJECTS)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.run-stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

dev: $(VENV)/.dev-stamp ## set up the development environment in .venv

# -- the two commands -----------------------------------------------------------------------------

run: $(VENV)/.run-stamp ## run the whole mesh on this host, in the foreground
	@exec $(BIN)/python scripts/foreground.py $(BIN)/daemoneye up

test: $(VENV)/.dev-stamp ## set up everything and run all tests
	$(BIN)/python -m pytest

# -- parts of it ----------------------------------------------------------------------------------

unit: $(VENV)/.dev-stamp ## only the tests that start no processes
	$(BIN)/python -m pytest -m "not integration"

integration: $(VENV)/.dev-stamp ## only the tests that start real processes
	$(BIN)/python -m pytest -m integration

check: lint types imports sizes generate-check proto-lint proto-breaking test ## everything that CI checks

fmt: $(VENV)/.dev-stamp ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet . || true

lint: $(VENV)/.dev-stamp ## check format and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev-stamp ## check types (mypy --strict)
	$(BIN)/mypy

imports: $(VENV)/.dev-stamp ## check the import layers
	$(BIN)/lint-imports

sizes: $(VENV)/.dev-stamp ## check that no file grew too long
	$(BIN)/python scripts/check_sizes.py

generate: $(VENV)/.dev-stamp ## generate the Python contract and the generated documents
	$(BIN)/python scripts/generate.py
	$(BIN)/python -m daemoneye_mesh.access > docs/access.md
	$(BIN)/python scripts/generate_docs.py

generate-check: $(VENV)/.dev-stamp ## fail when generated code is stale
	$(BIN)/python scripts/generate.py --check
	$(BIN)/python scripts/generate_docs.py --check

proto-lint: ## lint the contract (needs Node.js)
	$(BUF) lint

proto-breaking: ## fail when the contract breaks what was promised (needs Node.js)
	$(BUF) breaking --against protos/promised.binpb

proto-promise: ## promise the contract as it is now: done when issues land (needs Node.js)
	$(BUF) build --exclude-source-info --output protos/promised.binpb

grpcurl: $(TOOLS)/grpcurl ## install grpcurl into .tools (needs Go)

$(TOOLS)/grpcurl:
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@$(GRPCURL_VERSION)

# -- containers -----------------------------------------------------------------------------------

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

up: ## build and start the mesh in containers (needs Docker)
	$(COMPOSE) up --detach --build

down: ## stop the containers; the events stay in their volume
	$(COMPOSE) down

# -- benchmarks -----------------------------------------------------------------------------------

bench: $(VENV)/.dev-stamp ## run all benchmarks; QUICK=1 keeps each under a minute
	$(BIN)/python -m benchmarks

bench-%: $(VENV)/.dev-stamp
	$(BIN)/python -m benchmarks $*

upgrade: $(VENV)/.dev-stamp ## install the newest versions and write constraints.txt from them
	env -u PIP_CONSTRAINT $(BIN)/python -m pip install --quiet --upgrade -r requirements-dev.txt
	@head -3 constraints.txt > $(VENV)/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable >> $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

clean: ## remove the environment and everything generated outside the tree's sources
	rm -rf $(VENV) .venv-bench $(TOOLS) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
