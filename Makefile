# `make` lists what there is to make. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3

BIN     := .venv/bin
INSTALL := $(BIN)/pip install --quiet -c constraints.txt
DEMO    := demo-output
SHOW    := set -x; export HF_HUB_OFFLINE=1 PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help test lint format demo clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

test: lint  ## check style and types, then run all tests
	$(BIN)/pytest

lint: .venv/with-dev  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/with-dev  ## mend style where a program can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

