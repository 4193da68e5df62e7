# Each target creates .venv and installs what it needs. Nothing but pip's configured package index is contacted,
# unless TORCH_INDEX names one for torch:   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASK ?= classify

.PHONY: demo test check bench clean

demo: $(VENV)/.installed
	$(BIN)/prunesolve demo --task $(TASK) --out demo-out

# two workers of one thread each: torch's thread pools would wait for one another on two cores
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/proofs.py
	$(BIN)/python benchmarks/instances.py
	$(BIN)/python benchmarks/networks.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "prunesolve needs Python 3.11 or newer; name one: make demo PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
ifdef TORCH_INDEX
	$(BIN)/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch
endif
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out build *.egg-info src/*.egg-info
