# `make demo` and `make test` do all their own set-up, in a virtual environment of their own.
# Stamps make a second run fast. Set PYTHON for another interpreter, VENV for another folder.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
BUILD_TOOLS := setuptools pybind11 ninja
RUNTIME := $(VENV)/.stamp-runtime
DEV := $(VENV)/.stamp-dev
NATIVE := build/.stamp-native
PROMPT := engine/demo/prompt.txt
CSRC := $(shell find csrc -type f)
CPP := -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'

# In a checkout a missing compiled module is an error; AMX is also built emulated, for the tests.
export SACCADE_REQUIRE_NATIVE := 1
export SACCADE_BUILD_AMX_EMULATION := 1

.NOTPARALLEL:
.PHONY: help demo test soak lint format native wheel bench clean
help:
	@echo "make demo    install, build and answer a prompt with the shipped demo checkpoint"
	@echo "make test    every test (ARGS='-k name' passes options to pytest)"
	@echo "make soak    the server under load and faults, every count in full (about an hour)"
	@echo "make lint    ruff, mypy and clang-format (make format: rewrite the files)"
	@echo "make native  build the compiled kernels into this folder"
	@echo "make bench   the benchmark tables of benchmarks/results"
	@echo "make wheel   a source distribution and a wheel in dist/"

demo: $(RUNTIME) $(NATIVE)
	@echo "A pass key is hidden in $(PROMPT), which ends with the question:"; tail -n 1 $(PROMPT); echo
	$(BIN)/saccade generate demo --prompt-file $(PROMPT) --max-tokens 16 --stop . --temperature 0

test: $(DEV) $(NATIVE)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

soak: export SACCADE_TEST_LOAD := full
soak: $(DEV) $(NATIVE)
	$(BIN)/pytest -s tests/server/test_faults.py tests/server/test_neighbours.py tests/server/test_soak.py \
	  tests/server/test_pressure.py tests/server/test_injection.py tests/server/test_specification.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/types && ln -sfn "$(CURDIR)" build/types/saccade
	MYPYPATH=build/types $(BIN)/mypy -p saccade.engine -p saccade.kernels -p saccade.server
	find csrc $(CPP) | xargs -r $(BIN)/clang-format --dry-run -Werror

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc $(CPP) | xargs -r $(BIN)/clang-format -i

native: $(NATIVE)

bench: $(DEV) $(NATIVE)
	$(BIN)/saccade bench kernels $(ARGS)
	$(BIN)/saccade bench engine $(ARGS)

wheel: $(DEV)
	rm -rf dist
	$(BIN)/pyproject-build

clean:
	rm -rf build dist saccade.egg-info _native.*.so $(RUNTIME) $(DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Saccade needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(PIP) $(BUILD_TOOLS)
	$(PIP) --no-build-isolation -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(NATIVE): $(CSRC) setup.py | $(RUNTIME)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
