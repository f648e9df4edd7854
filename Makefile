# Two commands matter: `make bench` and `make test`. Both set the environment up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: setup bench test test-engines check tables lock clean

setup: $(STAMP)

# The lock is complete and was resolved once, so pip installs it without looking at declared dependencies.
# Compiled once by all cores: where PYTHONDONTWRITEBYTECODE is set, every process would compile transformers for itself.
# Packages carry a few files of other Pythons, which do not compile; nobody imports them.
$(STAMP): requirements/cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile -r requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') > /dev/null || true
	touch $@

# The main job: gamma and alpha over decoding temperatures on the embedded pair. `make bench ARGS="--preset smoke"`.
bench: setup
	$(BIN)/python -m pytest --benchmark-only suites/ $(ARGS)

# A worker a core, each of one thread: two threads each would wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not engine" -n auto --maxprocesses 8 --dist worksteal

# Conformance on real vLLM engines, each in a process of its own.
test-engines: setup
	$(BIN)/python -m pytest tests -m engine

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m "not slow and not engine" -n auto --maxprocesses 8 --dist worksteal

# Markdown, LaTeX and figures, derived from the raw records in results/.
tables: setup
	$(BIN)/specheat tables results

# Resolve requirements/cpu.in anew. Needs a network; the lock is committed.
lock: setup
	$(BIN)/python requirements/make_lock.py requirements/cpu.in > requirements/cpu.lock.new
	mv requirements/cpu.lock.new requirements/cpu.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
