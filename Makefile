# Every target does its own set-up, in a virtual environment inside the checkout.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
MOVIE ?= $(DEMO)/movie.tif
SIMULATED = $(filter $(DEMO)/movie.tif,$(MOVIE))
ARGS ?=
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench examples weights gpu-check lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# One stamp for each set of extras; quick when setup.py has not changed.
.venv/run.stamp: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/%.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

setup: .venv/test.stamp  ## virtual environment with everything that the tests need

demo: .venv/run.stamp  ## simulate movies, fit and localize them (or take MOVIE=path, ARGS="--offset 100 ...")
	@mkdir -p $(DEMO)
	$(if $(SIMULATED),$(BIN)/smlmcore simulate $(MOVIE) --structure filaments --spots-per-frame 16 --frames 1700 --seed 1 --overwrite)
	$(BIN)/smlmcore fit '$(MOVIE)' --out $(DEMO)/result --overwrite $(ARGS)
	$(if $(SIMULATED),$(BIN)/smlmcore simulate $(DEMO)/dense.tif --config examples/dense_movie.yaml --overwrite)
	$(if $(SIMULATED),$(BIN)/smlmcore localize $(DEMO)/dense.tif --out $(DEMO)/dense --overwrite)

test: .venv/test.stamp  ## all tests
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal $(ARGS)

bench: .venv/bench.stamp  ## benchmarks beside their peers (ONLY=fitting for one), JSON to bench/results/
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m bench $(ONLY) $(ARGS)

examples: .venv/run.stamp  ## every example, each ending in numbers (ONLY=astigmatic for one, ARGS=--quick)
	@set -e; for script in examples/$(or $(ONLY),*).py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

# On a machine with a GPU and its own Python with CuPy: no virtual environment, plain checkout.
gpu-check:  ## tests on CuPy arrays, compute-sanitizer on the kernels, GPU benchmarks
	PYTHONPATH=. $(PYTHON) -c 'from smlmcore import backend; backend.to_gpu([0.0])'
	PYTHONPATH=. $(PYTHON) -m pytest -q
	PYTHONPATH=. compute-sanitizer --error-exitcode 1 $(PYTHON) -m pytest -q tests/test_kernels.py -k cuda
	PYTHONPATH=. $(PYTHON) -m bench --device gpu

weights: .venv/run.stamp  ## the network that comes with the package, taught anew on frames that the model draws
	$(BIN)/python -m smlmcore.localize.learn smlmcore/localize/general.npz

lint: .venv/test.stamp  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the environment and everything generated
	rm -rf .venv build dist *.egg-info $(DEMO) results .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +
