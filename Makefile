# `make` lists what can be made. All packages go into .venv; results of the demo into demo-output.
PYTHON ?= python3

BIN     := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# A file's tests share what they make, so they stay in one process; files come in the order of their
# names, small ones last.
PYTEST  := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
DEMO    := demo-output
METHODS :=# of the demo, with commas; none: every method
LOWEST  := .venv-lowest

# Of what is installed a quarter is ever imported, and compiled when it is, once: pip need not
# compile it all, if Python may keep what it compiles.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quick test families lint format demo bounds clean

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
	$(BIN)/pytest -n auto --dist load --every-method tests/pruning/test_families.py \
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
	$(BIN)/secateur demo --out $(DEMO) --methods '$(METHODS)'

bounds: export HF_HUB_OFFLINE = 1
bounds: $(LOWEST)/installed  ## a part of the tests with the lowest versions pyproject.toml admits
	$(LOWEST)/bin/pytest -n auto --dist loadfile tests/test_dependencies.py tests/sparsity tests/packing \
	    tests/statistics tests/recipe tests/methods/test_contract.py tests/checkpoint/test_checkpoint.py \
	    tests/checkpoint/test_packed.py \
	    tests/recovery tests/evaluation tests/reporting/test_report.py tests/checkpoint/test_lock.py \
	    tests/cli/test_pack.py tests/cli/test_prune_evaluate_check.py tests/inference/test_kernel.py

clean:  ## remove all that was made, .venv and demo-output too
	rm -rf .venv $(LOWEST) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# What the targets above need. A stamp is newer than the files it depends on once they are followed.

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ .venv/installed

# torch stands as pinned, so that no build for a GPU comes; three packages have no wheel to prefer.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv "$$(grep ^torch== constraints.txt)"
	echo "torch; python_version < '3'" > $(LOWEST)/without-torch.txt
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --only-binary :all: \
	    --no-binary rouge-score --no-binary sqlitedict --no-binary word2number \
	    --override $(LOWEST)/without-torch.txt pyproject.toml --extra dev -o $(LOWEST)/lowest.txt
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet --no-deps -r $(LOWEST)/lowest.txt -e .
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
