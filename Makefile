# Two commands on a fresh machine: `make demo` and `make test`.
# BOOTSTRAP is the interpreter that makes the environment (3.11 or newer).

BOOTSTRAP ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
INSTALLED := $(VENV)/installed.stamp

OLDEST := .venv-oldest
OLDEST_TORCH := 2.11.0

# Workers of the test run, each with one thread of its own: with more, the pools of several
# processes fight over the same cores.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PYTHON) -m pytest

.PHONY: demo install lint test facts check test-slow zoo fuzz test-gpu test-oldest bench bench-gpu clean

demo: install
	$(PYTHON) -m benchmarks.demo

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(BOOTSTRAP) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(PYTHON)
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -m "not slow and not gpu and not zoo" -n $(JOBS)

# The benchmark's cases beside their baseline: plans, kernels and reasons, without a clock.
facts: install
	$(BIN)/tokenpass check --no-timing

# The same with the clock: by hand, on a quiet machine.
check: install
	$(BIN)/tokenpass check

test-slow: install
	$(PYTEST) -m "slow and not gpu and not zoo"

# Every family of the zoo: the tests, and the page that says what is edited in each.
zoo: install
	$(PYTEST) tests/models/test_zoo.py tests/models/test_replay_laws.py -n $(JOBS)
	$(PYTHON) -m tests.models.coverage --jobs $(JOBS)

# Random models: what fails is printed with its simplest form and saved as a replay bundle.
fuzz: install
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz --count 10000 --jobs $(JOBS) --save .fuzz

test-gpu: install
	$(PYTEST) -m gpu

# By hand: the oldest torch that is supported has no CPU build on PyPI and weighs gigabytes.
test-oldest: $(OLDEST)/installed.stamp
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(OLDEST)/bin/python -m pytest -m "not slow and not gpu and not zoo" -n $(JOBS)

$(OLDEST)/installed.stamp: pyproject.toml setup.py constraints.txt
	$(BOOTSTRAP) -m venv $(OLDEST)
	sed -e 's/^torch==.*/torch==$(OLDEST_TORCH)/' -e '/^triton==/d' constraints.txt \
		> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e '.[dev]'
	touch $@

bench: install
	$(PYTHON) -m benchmarks.run

bench-gpu: install
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
