# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv first and installs medkd into it.
# Another Python: make test PYTHON=python3.12. Another place for the environment: make test VENV=/path/to/env.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.medkd-installed

.PHONY: demo test faults lint format docs house environment clean

demo: $(STAMP)
	$(BIN)/medkd_demo $(DEMO)

# The linters run beside the tests and say what they have to say in one piece when they are done; either fails the target,
# and Ctrl-C ends both. Threads of two test processes would fight for the same cores, so each process gets one. A process
# that crashes ends the run: pytest-xdist may wait for ever after one
test: $(STAMP)
	@said=$$(mktemp); status=0; \
	( trap 'kill $$work; exit 1' TERM; $(MAKE) --no-print-directory lint >$$said 2>&1 & work=$$!; \
	  wait $$work; found=$$?; echo; cat $$said; exit $$found ) & lint=$$!; \
	trap 'kill $$lint; rm -f $$said; exit 130' INT; \
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart 0 --dist loadfile \
	  --no-loadscope-reorder --durations=10 || status=1; \
	wait $$lint || { status=1; cat $$said; echo "The linters failed."; }; \
	rm -f $$said; exit $$status

faults: $(STAMP)
	MEDKD_FAULTS=full OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/training/test_sides.py -n $(WORKERS) --max-worker-restart 0 --dist load

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/xenon --max-absolute B medkd dataset_conversion benchmarks

# The figures by which the house is kept: repeated blocks, complexity, tokens per line, comprehensions
house: $(STAMP)
	$(BIN)/python -m benchmarks.house

docs: $(STAMP)
	$(BIN)/mkdocs build --quiet
	@echo "open build/docs/index.html"

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

environment: $(STAMP)

# One pip call for everything, so that the resolver picks a torch and a torchvision that belong together. It would compile
# one module after another; here every core does. Those that no Python of today compiles are templates and tests
$(STAMP): setup.py pyproject.toml medkd/__init__.py medkd/cli/__init__.py
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 13) else "medkd needs Python 3.10 to 3.12, found %d.%d; choose one with PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing medkd and what it needs into $(VENV); with PyTorch this takes a few minutes and about 6 GB."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -e '.[detection,dicom,export,serve,dev]'
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib medkd dataset_conversion >$(VENV)/compiled.log 2>&1 || true
	touch $@

# The environment and the demo's output; medkd_data, where results lie, is never touched
clean:
	rm -rf $(VENV) build dist medkd.egg-info demo_output .mypy_cache .ruff_cache
