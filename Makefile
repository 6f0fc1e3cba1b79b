# make demo: the whole method on embedded scenes. make test: all checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-lowest fuzz torture check lint format clean

demo: $(VENV)/.core
	$(BIN)/spiritseg demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The same tests with the oldest versions that pyproject.toml allows.
LOWEST := .venv-lowest
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra dev pyproject.toml \
		--output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --requirement $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

# Cases of each fuzzer; those of `make test` are the first 110.
CASES ?= 3000
fuzz: $(VENV)/.installed
	SPIRITSEG_FUZZ=$(CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/fuzz

# Stops, garbles and starves a small run this often.
ROUNDS ?= 100
torture: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/torture.py --rounds $(ROUNDS)

check: lint
	$(BIN)/mypy

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tested versions: constraints.txt. Without it: pip install -e . or -e '.[dev]'
$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| (echo "spiritseg needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) demo runs .mypy_cache .ruff_cache .pytest_cache
