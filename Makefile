# `make demo` and `make test` set themselves up on a fresh machine: Python 3.11 or newer and make are all they need.
# PYTHON=python3.12 make demo picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint types bench docs setup clean

demo: $(READY)
	$(BIN)/velatura demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4

test-all: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/basedpyright
	$(BIN)/python -m tools.check_page  # the page's JavaScript, where npm is

# Freed memory is kept: handing it back and asking for it again would be measured with the rest.
bench: export MALLOC_MMAP_THRESHOLD_ = 33554432
bench: export MALLOC_TRIM_THRESHOLD_ = -1
bench: $(READY)
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/overlays.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/pictures.py
	$(BIN)/python benchmarks/server.py
	-$(BIN)/python benchmarks/page.py  # wants chromium; a bound that is missed does not end the rest
	$(BIN)/python benchmarks/bases.py
	$(BIN)/python benchmarks/merging.py  # wants about 10 GB of disk, which it gives back

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

setup: $(READY)

# The stamp is newer than what it was made from, so a second call does nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("velatura needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis
