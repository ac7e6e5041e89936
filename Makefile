PY    ?= .venv/bin/python
TORCH ?= torch==2.13.0
BASE_PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: setup bench bench-quick report publish test lint clean help

.venv/bin/python:
	$(BASE_PYTHON) -m venv $(VENVFLAGS) .venv

.venv/ready: .venv/bin/python pyproject.toml
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -e ".[dev]"
	touch $@

setup: .venv/ready  ## Build .venv: torch only where none is importable, the package in editable mode, the tools
