# Every target works from a fresh clone with Python 3.10-3.13 and pip; all are safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## .venv with everything that the other targets need

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,test,dev]"
	touch $(STAMP)

demo: install  ## synthetic corpus -> pretraining -> CTC -> transcripts; under 10 min on 2 cores
	$(BIN)/python recipes/demo.py

test: install  ## fast tests (under 10 min on 2 cores)
	$(BIN)/python -m pytest

slow: install  ## tests that train for minutes or need real speech
	$(BIN)/python -m pytest -m slow --timeout 3600

check: install  ## formatting, lint, types, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict hparams .pre-commit-config.yaml
	$(BIN)/codespell w2v_plugin recipes hparams tests benchmarks *.md

bench: install  ## speed against named peers; writes benchmarks/RESULTS.md, or of another processor than ours RESULTS_<processor>.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/pretraining.py
	$(BIN)/python benchmarks/finetuning.py

clean:  ## remove the environment and all runs
	rm -rf .venv runs
