# Every target makes its own environment first: Python 3.11 and make are all that must be there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEVICE := .cache/arm

comma := ,
COMPILER := $(shell command -v cc || command -v gcc || command -v clang)
EXTRAS := compile,demo,test,dev$(if $(COMPILER),,$(comma)cross)

# One process a core and one thread a process; TVM would pin the threads of every process to the same cores.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TVM_NUM_THREADS=1 TVM_BIND_THREADS=0
PYTEST := $(THREADS) $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help install demo test test-slow test-arm lint bench-install clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml Makefile
	@if [ -z "$(PYTHON)" ]; then echo "no python3 on the PATH: install Python 3.11" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Whet needs Python 3.11, name it with PYTHON=" >&2; exit 1; }
	@# Debian ships venv without ensurepip: then the pip outside fills the new environment.
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV); }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install -q pip || \
	  { rm -rf $(VENV); echo "no pip for $(PYTHON): install python3-venv (or python3-pip)" >&2; exit 1; }
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[$(EXTRAS)]'
	touch $(STAMP)

install: $(STAMP) ## make .venv with everything that compiling and testing needs

demo: $(STAMP) ## the main job on real pictures: MobileNetV2 for this machine, beside PyTorch eager
	$(BIN)/python -m benchmarks.demo

test: $(STAMP) ## the everyday suite
	$(PYTEST) -m "not slow and not arm"

test-slow: $(STAMP) ## what takes longer
	$(PYTEST) -m "slow and not arm" --timeout 1800

# The environment's Python comes first: the system's may have no pip.
$(DEVICE)/py64: tests/arm/setup | $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/arm/setup $(DEVICE)
	touch $@

test-arm: $(STAMP) $(DEVICE)/py64 ## bundles on the emulated AArch64 device (apt, as root, for its first set-up)
	WHET_ARM_DEVICE=$(DEVICE) $(PYTEST) -m arm

lint: $(STAMP) ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p whet
	$(BIN)/lint-imports

bench-install: $(STAMP) ## the peers and model collections that the benchmarks use
	$(BIN)/python -m pip install -q -e '.[$(EXTRAS),bench]'
	@# Without its requirements: those that XNNPACK on a CPU needs are in the extra.
	$(BIN)/python -m pip install -q --no-deps executorch==1.5.1

clean: ## remove what the targets made
	rm -rf $(VENV) .cache build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .grimp_cache
