# `make` lists what can be made. All packages go into .venv; results of the demo into demo-output.
PYTHON ?= python3

BIN     := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
PYTEST  := $(BIN)/pytest -n auto --dist loadgroup
DEMO    := demo-output

# Of what is installed a quarter is ever imported, and compiled when it is, once: pip need not
# compile it all, if Python may keep what it compiles.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quick test families lint format demo clean

help:  ## list what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

quick: lint  ## in under a minute: style, types, every method, one family, one command
	$(BIN)/pytest -n 2 $(QUICK)

# The rooms' borders, the contract of every method, one family from disk to disk, one command.
QUICK := tests/test_architecture.py tests/methods/test_contract.py \
	'tests/pruning/test_families.py::test_from_disk_to_disk[llama-wanda++-2:4]' \
	tests/cli/test_prune_evaluate_check.py::test_prune_succeeds_and_says_so

test: lint  ## check style and types, then run all tests
	$(PYTEST)

families: .venv/installed-dev  ## prune every family by every method; write docs/families.md
	$(PYTEST) --every-method tests/pruning/test_families.py \
		--deselect tests/pruning/test_families.py::test_the_table_in_the_docs_is_what_is_tested
	$(BIN)/python tests/families_table.py

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
