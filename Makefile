# make bench [SUITE=configs/suites/quickstart.yaml] [ARGS="--set measure.repeats=5"]
# make docs    # site/, from docs/ and the registries
# make gallery # the quickstart again, into docs/gallery and its pictures (a quiet machine, chromium)
# make test | test-fast | test-thorough | lint

SUITE ?= configs/suites/quickstart.yaml
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Where it is set each process of the tests would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench docs gallery test test-fast test-thorough lint

bench: $(VENV)/.installed
	$(BIN)/andromeda-scale run $(SUITE) $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

gallery: $(VENV)/.installed
	rm -rf build/gallery
	$(BIN)/andromeda-scale run configs/suites/quickstart.yaml --run-dir build/gallery
	$(BIN)/andromeda-scale report build/gallery --format html
	cp build/gallery/*.parquet build/gallery/suite.yaml docs/gallery/quickstart/
	for size in desktop:1440,1800 phone:360,2000; do \
	  chromium --headless=new --no-sandbox --virtual-time-budget=20000 --hide-scrollbars \
	    --window-size=$${size#*:} --screenshot=docs/report-$${size%:*}.png \
	    file://$(CURDIR)/build/gallery/report.html || exit 1; done

test: test-fast lint
	$(BIN)/pytest tests/unit tests/replay -m 'slow and not thorough' $(ARGS)
	$(BIN)/pytest tests --ignore tests/unit --ignore tests/replay $(ARGS)

# Every combination too: what is marked thorough is left out of `make test`, which has 15 minutes.
test-thorough: $(VENV)/.installed-test
	$(BIN)/pytest tests -m '' $(ARGS)

# No process group, no sub-minute waits: run it after every edit. A file's tests share what they
# merged, so they go to one process; two processes, so one thread each; and pytest's capture of log
# records visits torch's 80 loggers three times a test.
test-fast: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -p no:logging \
	  -m 'not slow and not thorough' tests/unit tests/replay $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@
