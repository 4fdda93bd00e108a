# The whole project on a machine with Python 3.11 or 3.12, make and a C compiler. Everything is installed into .venv, once.
#   make demo [RUN=folder] [SEED=n]   refine, train and compare on the micro-world; anew where an earlier demo was finished
#   make real [RUN=folder] [SEEDS=0,1,2] [JOBS=4]  SFT and RAFT on SmolLM2-135M-Instruct and MedQuAD; RAFT_DATA_DIR names the data's folder
#   make test [ARGS="-k rows"]        the tests, two files at a time (WORKERS=0: in one process, for a debugger)
#   make oldest [ARGS="-k rows"]      the same with the oldest supported versions, in .venv-oldest (needs Python 3.12)
#   make check                        style, types and the direction of imports
#   make bench [ARGS="train"]         benchmarks (kernels, train, rollout), and a quick look at each provider by pytest-benchmark
SHELL := /bin/bash
RUN ?= runs/out/demo
SEED ?= 0
SEEDS ?= 0
JOBS ?= 1
REAL_RUN := $(if $(filter-out runs/out/demo,$(RUN)),$(RUN),runs/out/real)
export RAFT_DATA_DIR ?= $(wildcard ../shared/data)
WORKERS ?= 2
ARGS ?=
BIN := .venv/bin

.PHONY: venv demo real test oldest check bench clean

venv:
	@for python in $(PYTHON) python3.11 python3.12 python3; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	    exec $$python scripts/install.py; \
	  fi; \
	done; echo "make: no Python 3.11 or 3.12 found; name one with PYTHON=path" >&2; exit 1

# Goes on where an earlier call was stopped; the summary is written last.
demo: venv
	$(BIN)/raft demo --run $(RUN) --seed $(SEED) \
	  $(if $(wildcard $(RUN)/summary.json),--overwrite,$(if $(wildcard $(RUN)),--resume))

# Goes on where an earlier call was stopped. The model is made once.
real: venv
	@if [ ! -d "$$RAFT_DATA_DIR" ]; then echo "make real: RAFT_DATA_DIR names no folder with the data files" >&2; exit 2; fi
	$(BIN)/python scripts/smollm2.py runs/out/SmolLM2-135M-Instruct
	$(BIN)/raft real --run $(REAL_RUN) --seeds $(SEEDS) --jobs $(JOBS) $(if $(wildcard $(REAL_RUN)),--resume) \
	  --model $${RAFT_REAL_MODEL:-runs/out/SmolLM2-135M-Instruct}

test: venv
	$(BIN)/python -m pytest -q --durations=15 --numprocesses=$(WORKERS) --dist=loadfile $(ARGS)

oldest: ; scripts/oldest.sh $(ARGS)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy raft kernels/raft_kernels $(wildcard bench studies)
	$(BIN)/lint-imports --no-cache

bench: venv
	$(BIN)/python -m bench $(or $(ARGS),kernels)
	$(BIN)/python -m pytest -q bench --benchmark-only --benchmark-columns=min,median,max

clean:
	rm -rf build dist *.egg-info kernels/build kernels/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find raft kernels bench studies tests scripts -name __pycache__ -prune -exec rm -rf {} +
