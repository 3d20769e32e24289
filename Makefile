# jeoparda: `make demo` runs the whole chain here, `make test` all tests. Both set everything up first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint soak bench clean

help:  ## this text
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## .venv with the package and all it needs; nothing to do when nothing changed
	@PYTHON="$(PYTHON)" VENV="$(VENV)" containers/setup.sh

demo: setup  ## archive -> store -> training -> map -> report, in demo/
	@$(BIN)/jeoparda demo

lint: setup  ## ruff, mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test: lint  ## all tests: unit, parallel, slurm
	@$(BIN)/python -m pytest tests/unit -rs --numprocesses auto --maxprocesses 4 --durations 15
	@$(BIN)/python -m pytest tests/parallel tests/slurm -rs --durations 25

soak: setup  ## long tests: chaos and fuzzing
	@$(BIN)/python -m pytest tests -rs -m soak

bench: setup  ## measure every claim of benchmarks/claims.toml again
	@$(BIN)/python -m benchmarks.claims

clean:  ## remove what was made here (not the cached Horovod wheel)
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache *.egg-info
