# PopAlign. Needs Python 3.11+ and make, nothing else; everything is installed into .venv.
#   make run     set up, then take the embedded model through the whole pipeline
#   make test    set up, then run the tests          make slow    the tests that take minutes
#   make check   ruff, formatting, types             make clean   remove .venv and caches (never artifacts)
# Variables: TORCH=cpu|cuda (default: cuda where nvidia-smi answers), PYTHON=..., ARGS=... (passed on)

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run test slow check format clean

# The lock was made on 3.11, so that one is tried first.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
TORCH ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
STAMP := .venv/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

help:
	@sed -n '2,5s/^# *//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON), torch for $(TORCH): two to five minutes the first time."
	@rm -f $(STAMP)
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	@# A CPU wheel that pip already knows of; else PyTorch's own CPU index, if it answers; else whatever the pin gives.
	@$(PIP) "$(TORCH_PIN)+cpu" 2>/dev/null \
		|| $(PIP) --retries 1 --timeout 15 --extra-index-url $(CPU_INDEX) "$(TORCH_PIN)+cpu" 2>/dev/null \
		|| $(PIP) "$(TORCH_PIN)"
else
	$(PIP) "$(TORCH_PIN)"
endif
	$(PIP) -e '.[dev]'
	@# Its own dependency, opencv-python, would overwrite the OpenCV that deepface needs.
	@$(PIP) --no-deps invisible-watermark PyWavelets
	@touch $(STAMP)

run: setup
	$(BIN)/popalign run $(ARGS)

# One process a core, one thread each. The files stay together; a process that is done takes over from another.
test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

slow: setup
	$(BIN)/python -m pytest -m slow $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
