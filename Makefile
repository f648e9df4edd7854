# Two commands matter: `make bench` and `make test`. Both set up the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: setup bench suites test test-engines check tables lock clean

setup: $(STAMP)

# The lock lists every package, so pip installs it with --no-deps. -qq hides pip's warnings; errors still appear.
# All cores compile the packages once. Otherwise every process compiles transformers again where PYTHONDONTWRITEBYTECODE is set.
# A few files of some packages are for other Pythons and do not compile; `|| true` ignores them, nothing imports them.
$(STAMP): requirements/cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-deps --no-compile -r requirements/cpu.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') > /dev/null || true
	touch $@

# The main job: gamma and alpha over decoding temperatures on the embedded pair. A short version: `make bench ARGS="--preset smoke"`.
bench: setup
	$(BIN)/python -m pytest --benchmark-only --benchmark-quiet -q suites/test_temperature_grid.py $(ARGS)

# Every suite that measures a single engine.
suites: setup
	$(BIN)/python -m pytest --benchmark-only --benchmark-quiet -q suites/ $(ARGS)

# One worker per core with one thread each. With more threads than cores, threads wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not engine" -n auto --maxprocesses 8 --dist worksteal

# Conformance on real vLLM engines. Each engine runs in a separate process.
test-engines: setup
	$(BIN)/python -m pytest tests -m engine

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m "not slow and not engine" -n auto --maxprocesses 8 --dist worksteal

# Regenerate the markdown, LaTeX and figures in results/ from the raw records.
tables: setup
	$(BIN)/specheat tables results

# Resolve requirements/cpu.in into the lock again. This needs a network; the lock is committed.
lock: setup
	$(BIN)/python requirements/make_lock.py requirements/cpu.in > requirements/cpu.lock.new
	mv requirements/cpu.lock.new requirements/cpu.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
