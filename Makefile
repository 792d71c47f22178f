# Two commands for a new user: `make run` and `make test`. Both make .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AGENTS ?= qsm,sac,td3
SUITE ?= smoke

.PHONY: run test check regress gate bench clean

run: $(VENV)/installed
	$(BIN)/python -m qsm_bench run --agents $(AGENTS) --suite $(SUITE)
	$(BIN)/python -m qsm_bench report $(SUITE)

test: $(VENV)/installed
	$(BIN)/python -m pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

regress: $(VENV)/installed
	$(BIN)/python -m qsm_bench regress

gate: $(VENV)/installed
	$(BIN)/python tests/benchmarks/gate.py

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	mkdir -p build
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only -s \
		--benchmark-json=build/benchmarks.json
	$(BIN)/python tests/benchmarks/performance.py build/benchmarks.json reports/performance.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
