# `make demo` shows the problem and a remedy; `make test` runs every check. Both need only Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := output/demo

.DEFAULT_GOAL := help
.PHONY: help demo test clean

help:
	@echo "make demo    install into $(VENV) and run the demonstration"
	@echo "make test    install the development tools too; lint, type check and test"
	@echo "make clean   remove $(VENV) and caches; results in output/ stay"
	@echo "Another interpreter: make PYTHON=python3.12 <target>"

demo: $(VENV)/.installed
	$(BIN)/incdet demo
	@echo "The report is $(CURDIR)/$(DEMO)/report.html"

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest < /dev/null

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "incdet needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)"; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "Installing incdet and its libraries into $(VENV) (a few gigabytes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml
	@echo "Installing incdet, its libraries and the development tools into $(VENV) (a few gigabytes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed
