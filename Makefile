# Every target sets up what it needs in .venv: nothing but Python >= 3.11 and gcc has to be there before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format lint types layers bench gpu simulated gpu-static suites fusion fuzz clean

demo: $(STAMP)  ## train the tutorials' CNN on handwritten digits, eager and compiled, compare, dump every stage to out/demo
	$(BIN)/python examples/demo.py --out out/demo

test: $(STAMP)  ## the tests
	$(BIN)/python -m pytest -q -n auto --dist loadscope --no-loadscope-reorder -m "not gpu and not suite"

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

gpu:  ## on a machine with a GPU, nothing installed: its tests, then eager, graphc and torch.compile; within eight minutes
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py --tests

simulated:  ## without a GPU, by a Python whose torch is built for CUDA: the tests for GPUs and a dry run, on simulated ones
	PYTHONPATH=. $(PYTHON) -m pytest -q -m suite tests/triton/test_simulated.py

gpu-static: $(STAMP)  ## compile every kernel of the benchmark programs for four GPUs, without one, and judge the machine code
	$(BIN)/python benchmarks/gpu_static.py --out benchmarks/results

suites: $(STAMP)  ## all samples of PyTorch's own databases, and models, against eager: one table, docs/coverage.md
	$(BIN)/python -m tests.suites --markdown docs/coverage.md

fusion: $(STAMP)  ## how much of the zoo and of the models of transformers generated kernels do: docs/fusion.md
	$(BIN)/python -m tests.suites.fusion --markdown docs/fusion.md

fuzz: $(STAMP)  ## 100,000 random programs, and other long runs; what has been judged is kept in out/fuzz
	$(BIN)/python -m pytest -q -m suite

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
