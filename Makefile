# Both `make demo` and `make test` make .venv first, from whatever Python PYTHON names.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
RECORD = benches/results/cpu-$(shell date +%F)

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    scan the sample corpus with the bundled model, write demo/report.html"
	@echo "make test    lint, types and tests"
	@echo "make lint    lint and types alone"
	@echo "make bench   the benchmarks, to benches/results"
	@echo "make clean   remove .venv and everything built"

# The stamp comes last: an installation that was interrupted is taken up again by the next `make`.
# No build isolation: an isolated build would fetch its tools anew, unpinned.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/cpu/*)
	@echo "Installing into .venv; a few minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools pybind11
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

demo: $(READY)
	$(BIN)/densitrace demo

test: lint
	$(BIN)/pytest

# mypy has to see the parts under the names they are imported by, which only the installation knows:
# build/lint is the same tree as links, and mypy runs inside it.
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@rm -rf build/lint && mkdir -p build/lint/densitrace
	@ln -s $(CURDIR)/densitrace/*.py* $(addprefix $(CURDIR)/,kernels tracer estimator) \
	    build/lint/densitrace/
	@ln -s $(addprefix $(CURDIR)/,tests benches examples) build/lint/
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml .

bench: $(READY)
	@mkdir -p benches/results
	$(BIN)/pytest benches --benchmark-only --benchmark-json=$(RECORD).json

clean:
	rm -rf .venv build dist demo densitrace.egg-info densitrace/_cpu*.so
