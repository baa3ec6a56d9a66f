# PopAlign. Needs Python 3.11+ and make, nothing else; everything is installed into .venv.
#   make run     install what running needs, then take the embedded model through the whole pipeline
#   make test    install the tests' tools too, then run the tests    make slow    the tests that take minutes, with Ray and Dask
#   make docs    the site, into build/site                           make check   ruff, formatting, types
#   make clean   remove .venv and caches (never artifacts)
# Variables: TORCH=cpu|cuda (default: cuda where nvidia-smi answers), PYTHON=..., ARGS=... (passed on)

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-slow setup-docs setup-hps run test slow docs check format clean

# The lock was made on 3.11, so that one is tried first.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
TORCH ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
# The one that fits that torch; it must come from where torch came.
TORCHVISION_PIN := torchvision==0.28.0
HPSV2_PIN := hpsv2==1.2.0
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
# What running needs, and on top of it what tests and checks need. Both are made anew when what is asked for changes.
RUNTIME := .venv/runtime
DEV := .venv/dev
SLOW := .venv/slow
HPS := .venv/hps
DOCS := .venv/docs
# Byte code is written when a module is first imported: most of what is installed never is. Without it every process would
# compile torch again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
MODELS := diffusers transformers accelerate peft tensorboard
FACES := deepface opencv-contrib-python-headless werkzeug
TABLES_AND_FLOWS := pandas pyarrow prefect fastapi
STORES := moto[server] s3fs datasets

help:
	@sed -n '2,6s/^# *//p' Makefile

setup: $(RUNTIME)

setup-dev: $(DEV)

setup-slow: $(SLOW)

setup-docs: $(DOCS)

setup-hps: $(HPS)

$(RUNTIME): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing what running needs into .venv ($(PYTHON), torch for $(TORCH)), 1.7 GB: one to three minutes the first time."
	@rm -f $(RUNTIME) $(DEV) $(SLOW) $(HPS) $(DOCS)
	@echo "  1/6 the environment, with a pip of today"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade 'pip>=25' || echo "      (there is none to be had; the one that came with Python is slower)"
	@echo "  2/6 $(TORCH_PIN) for $(TORCH)"
ifeq ($(TORCH),cpu)
	@# A CPU wheel that pip already knows of; else PyTorch's own CPU index, if it answers; else whatever the pin gives.
	@$(PIP) "$(TORCH_PIN)+cpu" 2>/dev/null \
		|| $(PIP) --retries 1 --timeout 15 --extra-index-url $(CPU_INDEX) "$(TORCH_PIN)+cpu" 2>/dev/null \
		|| $(PIP) "$(TORCH_PIN)"
else
	@$(PIP) "$(TORCH_PIN)"
endif
	@echo "  3/6 $(MODELS)"
	@$(PIP) $(MODELS)
	@echo "  4/6 $(FACES)"
	@$(PIP) $(FACES)
	@echo "  5/6 $(TABLES_AND_FLOWS)"
	@$(PIP) $(TABLES_AND_FLOWS)
	@echo "  6/6 popalign and the rest of what it needs"
	@$(PIP) -e .
	@touch $(RUNTIME)

$(DEV): $(RUNTIME)
	@echo "Installing what tests and checks need into .venv, 0.5 GB: a minute the first time."
	@rm -f $(DEV) $(SLOW)
	@echo "  1/2 $(STORES)"
	@$(PIP) $(STORES)
	@echo "  2/2 pytest, ruff, mypy and the rest"
	@$(PIP) -e '.[dev]'
	@touch $(DEV)

$(SLOW): $(DEV)
	@echo "Installing what slow tests need on top (Ray, Dask, bitsandbytes) into .venv, 0.3 GB: half a minute the first time."
	@rm -f $(SLOW)
	@$(PIP) -e '.[dev,slow]'
	@touch $(SLOW)

$(DOCS): $(RUNTIME)
	@echo "Installing what the site is built with into .venv, 40 MB: half a minute."
	@rm -f $(DOCS)
	@$(PIP) -e '.[docs]'
	@touch $(DOCS)

$(HPS): $(RUNTIME)
	@echo "Installing open_clip and hpsv2 into .venv, with $(TORCHVISION_PIN) for $(TORCH): half a minute."
	@rm -f $(HPS)
ifeq ($(TORCH),cpu)
	@# As for torch. The plain pin is a CUDA build on Linux, which loads all the same: see torchvision_operators.py.
	@$(PIP) "$(TORCHVISION_PIN)+cpu" 2>/dev/null \
		|| $(PIP) --retries 1 --timeout 15 --extra-index-url $(CPU_INDEX) "$(TORCHVISION_PIN)+cpu" 2>/dev/null \
		|| $(PIP) "$(TORCHVISION_PIN)"
else
	@$(PIP) "$(TORCHVISION_PIN)"
endif
	@$(PIP) -e '.[hps]'
	@$(PIP) --no-deps "$(HPSV2_PIN)"
	@# Its wheel was built without the vocabulary that it reads when it is imported.
	@cd $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		&& cp open_clip/bpe_simple_vocab_16e6.txt.gz hpsv2/src/open_clip/
	@touch $(HPS)

run: setup
	$(BIN)/popalign run $(ARGS)

# One process a core, one thread each. The files stay together; a process that is done takes over from another.
test: setup-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

slow: setup-slow
	$(BIN)/python -m pytest -m slow $(ARGS)

# The pages made from the source first; then the site, where every warning is an error. Needs no network.
docs: setup-docs
	$(BIN)/python docs/reference_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "The site is in build/site: open build/site/index.html"

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
