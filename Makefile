# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check soak bench size vectors clean

demo: .venv/.installed  ## from a checkpoint to an answer with its thinking visible
	$(BIN)/localcascade demo

test: check  ## everything CI runs
	$(BIN)/pytest

check: .venv/.installed  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

soak: .venv/.installed  ## the long sweeps, of which `make test` runs a sample
	LOCALCASCADE_SOAK=1 $(BIN)/pytest --timeout 3600

bench: .venv/.installed  ## every figure of the README, into bench/results/
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/inspection.py
	$(BIN)/python bench/convert.py
	$(BIN)/python bench/encoders.py
	$(BIN)/python bench/calibrate.py
	$(BIN)/python bench/download.py
	$(BIN)/python bench/geometry.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/maths.py

size: .venv/.installed  ## lines per package and the longest files
	@find quantize localcascade tests bench -name '*.py' | xargs wc -l | sort -n | tail -15

vectors: .venv/.oracle  ## recompute the stored reference data (needs torch)
	for script in tests/vectors/make_*.py; do $(BIN)/python $$script || exit 1; done

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	@echo "Installing; llama.cpp is compiled on the way, which takes some minutes the first time."
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

.venv/.oracle: .venv/.installed
	$(BIN)/pip install --quiet --editable '.[oracle]'
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
