# Every entry point of segmap. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest

.PHONY: help venv demo test test-long sim sim-long sim-mutants chaos bench native bench-spdk lint format docs lock clean distclean

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## make .venv from requirements.lock (the others do it by themselves)
	@bash ci/bootstrap.sh

demo: venv  ## the whole system at work on this machine, with checks (DEMO_ARGS="--keep", "--input PATH")
	@$(VENV)/segmap demo $(DEMO_ARGS)

test: venv  ## all tests but the long ones, with a time budget per suite
	@$(PYTEST) -m "not long" --budgets $(TEST_ARGS)

test-long: venv  ## the long tests: more seeds, more rounds
	@$(PYTEST) -m long $(TEST_ARGS)

sim: venv  ## one simulated history: SEED=number, HOURS=1, WORKLOAD=sparse, dense, storm, aimed; the same seed, the same trace
	@$(VENV)/python -m tests.sim run $(if $(SEED),--seed $(SEED)) --hours $(or $(HOURS),1) --workload $(or $(WORKLOAD),sparse)

sim-long: venv  ## simulated histories with new seeds, for MINUTES=60, after those that failed once
	@$(VENV)/python -m tests.sim long $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),60)

sim-mutants: venv  ## deliberately broken variants, each of which the simulation has to catch (SIM_ARGS="no-barrier")
	@$(VENV)/python -m tests.sim mutants $(SIM_ARGS)

chaos: venv  ## real processes, sockets and disks under faults: SEED=number (the same seed, the same schedule), MINUTES=10
	@mkdir -p build
	@$(VENV)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --seconds $$(( $(or $(MINUTES),10) * 60 )) \
		--json build/chaos.json $(CHAOS_ARGS)

bench: venv  ## measure, print a table and write build/bench.json (BENCH_ARGS="mapping store")
	@mkdir -p build
	@$(VENV)/python -m ci.bench --json build/bench.json $(BENCH_ARGS)

NATIVE := build/native$(if $(ASAN),-asan)
native: venv  ## build segmap_tgt and the bdev module against an installed SPDK (SPDK_PREFIX=... picks one; ASAN=1)
	@paths=$$($(VENV)/python -m ci.native) && $(MAKE) --no-print-directory -C dataplane/bdev_segmap \
		BUILD=$(CURDIR)/$(NATIVE) SPDK_PKG_CONFIG_PATH="$$paths" && echo "built $(NATIVE)/segmap_tgt"

bench-spdk: native  ## measure the bdev module beside SPDK's own bdevs, and write build/bench-spdk.json
	@$(VENV)/python -m ci.bench --json build/bench-spdk.json spdk

lint: venv  ## ruff, strict mypy, the tidy rules, and that generated docs are current
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(VENV)/mypy
	@$(VENV)/python ci/tidy.py
	@$(VENV)/python ci/docs.py --check

format: venv  ## let ruff lay out the code
	@$(VENV)/ruff format .
	@$(VENV)/ruff check --fix .

docs: venv  ## generate the reference pages under docs/ from the tables in the code
	@$(VENV)/python ci/docs.py

lock: venv  ## resolve pyproject.toml anew into requirements.lock (names no index; keeps hashes)
	@$(VENV)/pip-compile --quiet --config pyproject.toml --output-file requirements.lock pyproject.toml

clean:  ## remove what was built (.venv stays)
	@rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -print0 | xargs -0 -r rm -rf

distclean: clean  ## remove .venv too
	@rm -rf .venv
