PYTHON ?= python3
VENV := .venv
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
DOCS_READY := $(VENV)/.ready-docs
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: run test check fix bench docs guides mutants clean

run: $(RUN_READY)  ## the whole path on the shipped robot episodes, some minutes on 2 cores
	$(VENV)/bin/rtp demo --output runs/demo

test: $(DEV_READY)  ## all tests but the minutes-long ones
	$(VENV)/bin/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(DEV_READY)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

fix: $(DEV_READY)  ## mend what the linter and the formatter can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(DEV_READY)  ## the minutes-long tests; the speed comparisons are scripts in benchmarks/
	$(VENV)/bin/python -m pytest -m slow

docs: $(DOCS_READY)  ## the site of docs/, in build/site
	$(VENV)/bin/mkdocs build --strict

guides: $(DEV_READY)  ## follows the commands of README.md and docs/ at tiny settings, in 2 minutes
	$(VENV)/bin/python -m pytest -m slow tests/test_docs.py

mutants: $(DEV_READY)  ## hours: changes the pure core and names the changes that its tests do not notice
	$(PIP_INSTALL) --editable '.[mutants]'
	OMP_NUM_THREADS=1 nice -n 19 $(VENV)/bin/mutmut run --max-children 1
	$(VENV)/bin/mutmut results

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) runs build mutants

$(RUN_READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(DEV_READY): $(RUN_READY)
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

$(DOCS_READY): $(RUN_READY)
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@
