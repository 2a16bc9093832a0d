# The few commands of daily life. PYTHON is the interpreter that makes .venv (3.11 to 3.13).
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help run test lint bench ui

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 12

run: .venv/.installed  ## the whole pipeline on its smallest recipe
	.venv/bin/python jobs/pipeline.py quickstart

# In the order of the folders, so that the long tests of Ray do not all come last.
test: lint  ## lint, then every test
	.venv/bin/python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder

lint: .venv/.installed  ## style, types and the rules on who may import whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy --strict platform jobs analysis cluster
	.venv/bin/lint-imports

bench: .venv/.installed  ## speed of the hot paths, written to bench.json
	.venv/bin/python -m tests.benchmarks

ui: .venv/.installed  ## MLflow's pages on http://127.0.0.1:5000
	.venv/bin/promptdiffuser ui

# torch goes first and alone: resolved together with the rest, pip may fetch several builds of it, gigabytes each.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 -c constraints.txt
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[experts,dev]"
	@touch $@
