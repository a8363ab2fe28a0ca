# `make` lists what can be made. All packages go into .venv; results of the demo into demo-output.
PYTHON ?= python3

BIN     := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
DEMO    := demo-output

.PHONY: help test lint format demo clean

help:  ## list what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

test: lint  ## check style and types, then run all tests
	$(BIN)/pytest -n auto --dist loadfile

lint: .venv/installed-dev  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev  ## mend style, as far as a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: export HF_HUB_OFFLINE = 1
demo: .venv/installed  ## prune the bundled model with every method; a table and a report
	$(BIN)/secateur demo --out $(DEMO)

clean:  ## remove all that was made, .venv and demo-output too
	rm -rf .venv $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# What the targets above need. A stamp is newer than the files it depends on once they are followed.

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
