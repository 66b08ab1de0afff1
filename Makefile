# Everything a fresh clone needs is Python 3.11 and make. `make run` starts the product; `make help` lists the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
ARGS ?=

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install run demo test drill lint format constraints clean

help:  ## list what can be made
	@sed -n 's/^\([a-z]*\):.*##/\1#/p' Makefile | awk -F'#' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## set up .venv with the tested versions

run: $(INSTALLED)  ## fetch the weights once and start the product; Ctrl-C stops it (ARGS="--port 9000")
	$(BIN)/multimoe serve $(ARGS)

demo: $(INSTALLED)  ## start the product on a free port, use it as a person would, stop it
	$(BIN)/python -m gateway.demo $(ARGS)

test: $(INSTALLED_DEV)  ## run the tests (ARGS="-k gate"), on two cores
	$(BIN)/multimoe weights pull
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

drill: $(INSTALLED_DEV)  ## attacks and failures at full scale, one table of figures, under an hour (ARGS="media")
	$(BIN)/multimoe weights pull
	cd tests && ../$(BIN)/python -m drills $(ARGS)

lint: $(INSTALLED_DEV)  ## style, types and import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_DEV)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(INSTALLED_DEV)  ## pin what is installed now
	$(PIP) freeze --exclude-editable --exclude multimoe > constraints.txt

clean:  ## remove what was built and installed; weights and ratings stay
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
