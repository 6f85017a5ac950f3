# Two commands do everything on a fresh machine: `make demo` folds a real model, `make test` checks the project.
# Both make a virtual environment in .venv and install into it; nothing outside the working tree is touched.

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PINS = $(shell $(BIN)/python -c 'import sys; print("--constraint constraints.txt" * (sys.version_info >= (3, 11)))')
MODEL := models/digits-darknet.onnx

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo-installed ## fold the trained digit classifier, verify it, compare its accuracy; recalibrate it
	@mkdir -p $(BUILD)
	$(BIN)/bnfold $(MODEL) -o $(BUILD)/digits-fused.onnx --report $(BUILD)/digits.html
	$(BIN)/python examples/digits_accuracy.py $(MODEL) $(BUILD)/digits-fused.onnx
	$(BIN)/python examples/recalibrate_moved_inputs.py $(MODEL) $(BUILD)/digits-moved.onnx

test: lint types unit ## style, types and all tests

lint: $(VENV)/test-installed ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test-installed ## mypy --strict
	$(BIN)/mypy

# One thread for each worker: otherwise every worker's torch takes all cores, and they wait for each other.
unit: $(VENV)/test-installed ## pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

clean: ## remove what the other commands made
	rm -rf $(VENV) $(BUILD) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bnfold needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo-installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[cpu,report]'
	@touch $@

# torchvision and timm without their dependencies: torchvision insists on one build of torch and would replace
# another; of what timm asks for, the tests need only PyYAML, because they download no weights.
$(VENV)/test-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) $(PINS) --editable '.[dev,torch]' pyyaml
	$(PIP) $(PINS) --no-deps torchvision timm
	@touch $@
