# Two commands do all: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check coverage clean help
help:
	@echo "make demo    hold a spoken conversation with the embedded models (writes out/demo)"
	@echo "make test    run the tests"
	@echo "make check   lint, type-check, and see which way imports point"
	@echo "make coverage  run the tests without models; how much of the pure cores do they cover?"
	@echo "make clean   remove what the above made"

demo: $(VENV)/.installed
	$(BIN)/headstart run early --wav samples/speech/medium-france.wav samples/speech/pause-moon.wav --out out/demo

test: $(VENV)/.tested
	$(BIN)/headstart models pull
	$(BIN)/python -m pytest

check: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not models" --cov --cov-report=term --cov-fail-under=95

# torch first and pinned: left to pip, a newer build with gigabytes of CUDA may come instead.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Headstart needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing (about 2.5 GB, a few minutes; once)"
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
