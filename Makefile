# Both `make demo` and `make test` make .venv first, from whatever Python PYTHON names.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: help demo test lint bench bench-compare clean
.DEFAULT_GOAL := help

help:
	@echo "make demo           scan the sample corpus with the bundled model, write demo/report.html"
	@echo "make test           lint, types and tests"
	@echo "make lint           lint and types alone"
	@echo "make bench          the benchmarks, a quarter of an hour, to benches/results"
	@echo "make bench-compare  what moved from the last record but one; or OLD=a.json NEW=b.json"
	@echo "make clean          remove .venv and everything built"

# The stamp comes last: an installation that was interrupted is taken up again by the next `make`.
# No build isolation: an isolated build would fetch its tools anew, unpinned.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	@echo "Installing into .venv; a few minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools pybind11
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

demo: $(READY)
	$(BIN)/densitrace demo

# A process a core, of one thread each; the tests of threads ask for theirs. Files in their order: sorted
# by how many tests they hold, those of few and long ones would come last, on one core. No GPU, if there
# is one: Triton's kernels run in its interpreter, on CPU tensors. On a GPU: benches/gpu.sh.
test: lint
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# mypy has to see the parts under the names they are imported by, which only the installation knows:
# build/lint is the same tree as links, and mypy runs inside it.
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h)
	@rm -rf build/lint && mkdir -p build/lint/densitrace
	@ln -s $(CURDIR)/densitrace/*.py* $(addprefix $(CURDIR)/,kernels tracer estimator) \
	    build/lint/densitrace/
	@ln -s $(addprefix $(CURDIR)/,tests benches examples) build/lint/
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml .

bench: $(READY)
	record=$$($(BIN)/python benches/measuring/ledger.py) && \
	    $(BIN)/pytest benches --benchmark-only --benchmark-disable-gc --benchmark-json="$$record"

bench-compare: $(READY)
	@$(BIN)/python benches/compare.py $(OLD) $(NEW)

clean:
	rm -rf .venv build dist demo densitrace.egg-info densitrace/_cpu*.so densitrace/_cuda*.so
