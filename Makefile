# Two commands for a new user: `make run` and `make test`. Both make .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AGENTS ?= qsm,sac,td3
SUITE ?= quick

.PHONY: run test check docs wheel regress studies gate bench gpu clean

run: $(VENV)/installed
	$(BIN)/python -m qsm_bench run --agents $(AGENTS) --suite $(SUITE)
	$(BIN)/python -m qsm_bench report $(SUITE)

# On all cores, and one test more, as many wait for jobs. The tests of a file stay together, for what
# they share.
test: $(VENV)/installed
	$(BIN)/python -m pytest --dist loadfile \
		--numprocesses $$(( $$(nproc 2>/dev/null || sysctl -n hw.ncpu) + 1 ))

# The hooks of .pre-commit-config.yaml on every file: style and types.
check: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# The documentation site, in build/site; a broken link or reference is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What a user gets: the wheel, built from the sdist, without extras, in an environment of its own.
wheel: $(VENV)/installed
	rm -rf build/dist build/plain
	$(BIN)/python -m build --outdir build/dist
	$(BIN)/python tests/packaging/sizes.py build/dist/*.whl
	$(PYTHON) -m venv build/plain
	env -u PYTHONPATH build/plain/bin/pip install --quiet --constraint constraints.txt build/dist/*.whl
	build/plain/bin/python tests/packaging/main_job.py

regress: $(VENV)/installed
	$(BIN)/python -m qsm_bench regress

# Every study at its quick budget: reports/studies.
studies: $(VENV)/installed
	for name in $$($(BIN)/python -c "from qsm_bench.studies import STUDIES; print(*STUDIES)"); do \
		$(BIN)/python -m qsm_bench study $$name || exit; \
	done

gate: $(VENV)/installed
	$(BIN)/python tests/benchmarks/gate.py

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	mkdir -p build
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable --benchmark-only -s \
		--benchmark-json=build/benchmarks.json
	$(BIN)/python tests/benchmarks/performance.py build/benchmarks.json reports/performance.md

# On a machine with a GPU.
gpu: $(VENV)/installed
	$(BIN)/python tests/benchmarks/gpu.py reports/performance-gpu.md

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
