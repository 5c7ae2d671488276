# Two stamps, two sizes of environment: what runs, and what also tests. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-browser lint bench fuzz faults help
help:
	@echo "make quickstart   pretrain, fine-tune and evaluate a small GPT on this machine, about 5 minutes"
	@echo "make test         all tests but the slow ones"
	@echo "make test-browser the writing page in headless Chromium, which it installs (Debian, as root)"
	@echo "make lint         ruff and pyright"
	@echo "make bench        speed, as a ratio to peers in the same run; 15 minutes, writes docs/results/performance.md"
	@echo "make faults       kills, damage and full disks against tiny runs, hours; goes on where it was"
	@echo "make fuzz         files made to break every reader, about 20 minutes"

# Huge pages, because the large temporaries of a step are mapped anew each time.
quickstart: $(VENV)/runs.stamp
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/gpt quickstart

test: $(VENV)/tests.stamp
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# A browser is Debian's; what drives it comes from the package index.
test-browser: $(VENV)/tests.stamp
	command -v chromium > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends chromium; }
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest tests/test_page.py

lint: $(VENV)/tests.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

faults: $(VENV)/tests.stamp
	$(BIN)/python -W ignore tests/faults.py --output runs/faults

bench: $(VENV)/tests.stamp
	$(PIP) --editable '.[parity]'
	$(BIN)/python -m benchmarks --output docs/results/performance.md

fuzz: $(VENV)/tests.stamp
	$(PIP) --editable '.[fuzz]'
	$(BIN)/python tests/fuzz.py

$(VENV)/runs.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV), once"
	@start=$$(date +%s); $(PYTHON) -m venv $(VENV) && $(PIP) --editable . && touch $@ && \
	echo "Set up in $$(( $$(date +%s) - start )) s"

$(VENV)/tests.stamp: $(VENV)/runs.stamp
	@start=$$(date +%s); $(PIP) --editable '.[dev]' && touch $@ && \
	echo "Set up for tests in $$(( $$(date +%s) - start )) s"
