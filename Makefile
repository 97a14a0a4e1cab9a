# Set-up is part of every target: a virtual environment with the tested versions.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*?## ' Makefile | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON): allowed is Python 3.11 or newer; set PYTHON=python3.12, say"; exit 2; }
	@echo "Setting up $(VENV) (PyTorch and friends: a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt torch
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,mpi,dashboards]'
	@touch $(VENV)/.ready

.PHONY: setup
setup: $(VENV)/.ready ## the virtual environment, with the tested versions

.PHONY: bench
bench: setup ## the main job: simple, tp, ep at top-k 2, 4, 8 on 8 ranks; tables, plots, W&B runs
	$(RUN) runners/bench.py -m strategy=simple,tp,ep topk=2,4,8

.PHONY: seed
seed: setup ## the seed's three axes, and one report on them together
	$(RUN) -m runners.seed

.PHONY: report
report: setup ## one HTML page on the newest sweep
	$(RUN) -m analysis report

.PHONY: test
test: setup ## every test that CI runs
	$(RUN) -m pytest -q -m "not slow and not browser"

.PHONY: test-browser
test-browser: setup ## the report in headless Chromium, which must be installed
	@$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -q -m browser

.PHONY: test-full
test-full: setup ## every accepted way to spread the layer against the oracle, the whole product
	$(RUN) -m pytest -q -m slow tests/test_agree.py

.PHONY: tour
tour: setup ## docs/tour.md anew: every command of a new user, with what it prints
	$(RUN) benchmarks/tour.py

.PHONY: notebook
notebook: setup ## docs/example.ipynb executed on the newest sweep
	@$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[notebook]'
	$(RUN) benchmarks/notebook.py

.PHONY: check
check: setup ## lint, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

.PHONY: clean
clean: ## the virtual environment and caches; outputs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
