# `make run` and `make test` are all a fresh machine needs: python3, make and a package index.
PYTHON ?= python3
VENV := .venv
LOCK := constraints.txt
BIN := $(VENV)/bin
# Holds pip to the lock file: in what it installs and, with the first name before pip 26.2 and the second since, in what it
# builds with.
LOCKED := PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK)
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
PROMPT ?= The future of artificial intelligence is

.PHONY: run test test-fast coverage test-v3 contract matrix check bench gpu docs lock wheel wheel-install clean

run: $(VENV)/.stamp-run
	$(BIN)/specstream generate "$(PROMPT)" --max-new-tokens 100

# A worker that runs dry takes over the end of another's list: neighbours, which share their models, stay together.
# What tests/contract selects is in the other folders too.
test: check
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/contract

# Before a commit: the units of the package, and the first case of each losslessness test.
FAST := -m pytest tests/unit tests/lossless --ignore tests/unit/benchmarks --first-cases -n auto --dist worksteal
test-fast: $(VENV)/.stamp-test
	$(BIN)/python $(FAST)

# Which lines of each module the same tests run.
coverage: $(VENV)/.stamp-test
	$(BIN)/python $(FAST) --cov --cov-report=term:skip-covered

# Losslessness and bits as on a processor with AVX2 and no AVX512; docs/processors.md. Nothing to do on one of that level,
# where `make test` has run them, and on another architecture.
V3 := SPECSTREAM_CPU=x86-64-v3 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
LEVEL = $(BIN)/python -c "from specstream.environment import processor_level; print(processor_level().name)"
test-v3: $(VENV)/.stamp-test
	@case "$$(uname -m) $$($(LEVEL))" in \
	*" x86-64-v3") echo "this processor is x86-64-v3: make test has run these" ;; \
	x86_64*) $(V3) $(BIN)/python -m pytest tests/lossless tests/unit/models -n auto --dist worksteal ;; \
	*) echo "x86-64-v3 is no level of this processor" ;; \
	esac

# With the newest transformers: it fails if that cannot be fetched.
contract: $(VENV)/.stamp-test
	$(BIN)/python tools/matrix.py --only newest

# With every supported release that can be installed here: docs/versions.md. MATRIX=--help lists the options.
matrix: $(VENV)/.stamp-test
	$(BIN)/python tools/matrix.py $(MATRIX)

# Interrupted, it goes on; finished, it only writes the report again. A new run: BENCH=--no-resume.
bench: $(VENV)/.stamp-bench
	$(BIN)/specstream benchmark --config configs/benchmark_smoke.yaml $(BENCH)
	$(BIN)/specstream report runs/benchmark-smoke

# On a machine with a CUDA GPU, in minutes: tests, losslessness, bits and speeds. GPU="--parts passes,speed" runs some.
gpu: $(VENV)/.stamp-test
	$(BIN)/python -m benchmarks.gpu $(GPU)

check: $(VENV)/.stamp-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.experiments --check
	$(MKDOCS)

# Into build/site. A link to nowhere is an error.
docs: $(VENV)/.stamp-docs
	$(MKDOCS)

# Into dist: with compiled kernels for each instruction level of this architecture, so that nobody else needs a compiler.
wheel:
	$(PYTHON) -m venv --clear build/wheel
	rm -f dist/specstream_decoding-*.whl
	$(LOCKED) SPECSTREAM_WHEEL_LEVELS=all build/wheel/bin/python -m pip wheel --disable-pip-version-check \
		--no-deps --wheel-dir dist .

# The wheel as a user gets it: in an environment of its own, called from outside the checkout.
wheel-install: wheel
	$(PYTHON) -m venv --clear build/wheel-install
	PIP_CONSTRAINT=$(LOCK) build/wheel-install/bin/python -m pip install --quiet --disable-pip-version-check \
		dist/specstream_decoding-*.whl
	cd build/wheel-install && bin/specstream models list

# The lock file anew: the newest of everything that fits constraints.in, for every Python at once.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/uv pip compile pyproject.toml constraints.in --extra test --universal --python-version 3.10 --upgrade \
		--no-config --no-annotate --no-emit-index-url --custom-compile-command 'make lock' --quiet --output-file $(LOCK)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv without pip is one whose creation was interrupted; --clear starts it over.
define install
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(LOCKED) $(BIN)/python -m pip install --disable-pip-version-check -e $(1)
	@touch $@
endef

$(VENV)/.stamp-run: pyproject.toml $(LOCK)
	$(call install,.)

$(VENV)/.stamp-bench: pyproject.toml $(LOCK)
	$(call install,'.[report]')

$(VENV)/.stamp-docs: pyproject.toml $(LOCK)
	$(call install,'.[docs]')

$(VENV)/.stamp-test: pyproject.toml $(LOCK)
	$(call install,'.[test]')
