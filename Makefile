# Everything a person needs: `make demo` and `make test` set up what they use. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.installed-dev
RESULTS := benchmarks/results
PEER := $(if $(PEER_PATH),--peer arcface_torch --peer-path $(PEER_PATH))
# Two tests at a time, with a thread each: threads of several processes would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
# An emulated CUDA device, in a process of its own: where PyTorch has one itself, tests/cuda runs on that.
EMULATED := PYTHONPATH=$(CURDIR)/tests/cuda/emulated:$(CURDIR)/src:$(CURDIR)/tests
RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help setup demo quick test docs wheel test-slow test-gpu slurm-test faults bench bench-loader bench-suite bench-gpu gpu-bundle gpu-rehearsal report check format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch goes first and alone: its pin selects the CPU build, and what depends on it then finds it installed.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megaclass needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(STAMP)

# What tests and checks need: every extra that can be tested without a GPU.
$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(TOOLS)

setup: $(TOOLS)  ## make .venv and install megaclass with its pinned dependencies

demo: $(STAMP)  ## train on characters, test on characters never seen: about four minutes on two idle cores
	$(BIN)/megaclass train glyphs --run.output $(RUN)

quick: $(TOOLS)  ## the short tests that start no other process: what to run while you work, about a minute
	$(PYTEST) -m "not (slow or dist or process or long)" --ignore tests/cuda

test: check  ## lint, types, and every test that needs no GPU and no data set: five minutes on two idle cores
	$(PYTEST) -m "not slow" --ignore tests/cuda
	$(EMULATED) $(PYTEST) tests/cuda -m "not gpu and not slow"

test-slow: $(TOOLS)  ## the tests that take longer
	$(PYTEST) -m slow --ignore tests/cuda
	$(EMULATED) $(PYTEST) tests/cuda -m "slow and not gpu"

test-gpu: $(TOOLS)  ## the tests of the CUDA half, on a CUDA device
	$(BIN)/python -m pytest tests/cuda

slurm-test: $(TOOLS)  ## scripts of `megaclass job` on a SLURM of two nodes, which this installs (root, Debian): two minutes
	command -v slurmctld >/dev/null || { apt-get update -qq && \
		apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null; } || true # else the tests are skipped
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/slurm

faults: $(TOOLS)  ## a thousand faults put into runs, with rows and docs/reliability.md: 20 minutes on two idle cores
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults.campaign --write

bench: $(STAMP)  ## measure the head on the CPU, into runs/: two minutes; PEER_PATH=DIR adds arcface_torch
	mkdir -p runs
	$(BIN)/megaclass bench head --device cpu --num-classes 10K,100K --sample-rate 1,0.1 --precision fp32,bf16 \
		--steps 10 --output runs/head-cpu.jsonl $(PEER)

bench-loader: $(STAMP)  ## measure the loader, beside bare decode, and DALI where it is installed, into runs/
	mkdir -p runs
	$(BIN)/megaclass bench loader --output runs/loader-cpu.jsonl

bench-suite: $(STAMP)  ## a published report, scaled to this machine, with a page of it: SUITE=resnet50-abci by default
	$(BIN)/megaclass bench suite $(or $(SUITE),resnet50-abci) --fit

report: $(STAMP)  ## a page of the rows under benchmarks/results, or of ROWS=DIR, into runs/report
	mkdir -p runs/report
	$(BIN)/megaclass report $(or $(ROWS),$(RESULTS)) --output runs/report

bench-gpu: $(TOOLS)  ## test and measure everything on a CUDA GPU, into runs/gpu; PEER_PATH=DIR adds arcface_torch, PARTS=... chooses
	PEER_PATH=$(PEER_PATH) $(BIN)/python benchmarks/gpu.py $(PARTS)

gpu-bundle: $(STAMP)  ## what a GPU machine without network and .git needs, into build/gpu-bundle
	rm -rf build/gpu-bundle
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --only-binary=:all: \
		--python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
		--target build/gpu-bundle simplejpeg
	$(BIN)/python -c "from megaclass.results.machine import snapshot; print(snapshot()['revision'])" > build/gpu-bundle/revision

gpu-rehearsal: $(TOOLS)  ## all that a GPU that is lent for half an hour is to show, small, on an emulated one: ten minutes
	REHEARSAL=1 OUT=build/gpu-rehearsal PYTHONPATH=tests/cuda/emulated OMP_NUM_THREADS=1 \
		$(BIN)/python benchmarks/gpu.py $(or $(PARTS),1 2 3); status=$$?; cat build/gpu-rehearsal/summary.md; exit $$status

docs: $(STAMP)  ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: $(STAMP)  ## a wheel, in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

check: $(TOOLS)  ## lint and types alone
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

format: $(TOOLS)  ## format the sources
	$(BIN)/ruff format src tests examples benchmarks
	$(BIN)/ruff check --fix src tests examples benchmarks

clean:  ## remove what was made here, but no run
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info src/*.egg-info
