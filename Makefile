# Everything runs in .venv, which is made from git, make, Python 3.11+ and pip, and is left alone once it fits.
PYTHON ?= python3
# Where pip finds torch wheels when the default index has only large GPU builds: make demo TORCH_INDEX=<index>
TORCH_INDEX ?=
# Processes of the test run
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test slow lint format bench clean
help:
	@echo "make demo    the whole way on made subjects, in a few minutes"
	@echo "make test    the quick tests        make slow   the slow ones"
	@echo "make lint    ruff and mypy          make bench  speed beside other packages"
	@echo "make clean   remove .venv and caches"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("seguro needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) --no-deps torch)
	@$(PIP) -e ".[dev,demo,nets,fast,fewshot,dicom,federated]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/seguro demo

# one thread a process; compiled files are kept, as many tests start processes that would compile all again
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test: $(STAMP)
	@$(PYTEST)

slow: $(STAMP)
	@$(PYTEST) -m slow

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
