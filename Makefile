# Every target sets up what it needs in .venv: nothing but Python >= 3.11 and gcc has to be there before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SUITES := $(VENV)/.suites

.PHONY: demo test check format lint types layers bench suites clean

demo: $(STAMP)  ## train the tutorials' CNN on handwritten digits, eager and compiled, compare, dump every stage to out/demo
	$(BIN)/python examples/demo.py --out out/demo

test: $(STAMP)  ## the tests
	$(BIN)/python -m pytest -q -m "not gpu and not suite"

check: $(STAMP) format lint types layers test  ## what .ci/run runs

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP)  ## the tables of benchmarks/README.md
	$(BIN)/graphc bench benchmarks/kernels.py --against eager,inductor

suites: $(SUITES)  ## long runs: more random programs, all samples of PyTorch's own databases, models of transformers
	$(BIN)/python -m pytest -q -m suite
	$(BIN)/python -m tests.suites.operators
	$(BIN)/python -m tests.suites.modules
	$(BIN)/python -m tests.suites.optimizers
	$(BIN)/python -m tests.suites.hf

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(SUITES): $(STAMP)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,suites]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
