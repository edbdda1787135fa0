# `make study` runs the demo study; `make test` runs every test; `make outputs` stores the notebooks' results anew;
# `make docs` builds the site in _docs; `make test-gpu` runs the tests that need an NVIDIA GPU.
# All build .venv first when it is missing.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
export MPLBACKEND = Agg

.PHONY: study test test-gpu outputs readme docs clean

study: .venv/installed
	$(BIN)/cinic study demo --out out/demo

test: export OMP_NUM_THREADS = 1
test: .venv/installed-dev
	$(BIN)/python tools/check_export.py
	$(BIN)/python tools/check_outputs.py
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

test-gpu: .venv/installed-dev
	$(BIN)/python -m pytest -q -m cuda tests

outputs: .venv/installed-dev
	$(BIN)/python tools/check_outputs.py --store

readme: .venv/installed-dev
	$(BIN)/python tools/make_readme.py

docs: .venv/installed-docs study
	$(BIN)/python tools/make_docs.py

clean:
	rm -rf .venv out _docs _proc build dist *.egg-info

.venv/installed: settings.ini setup.py
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=/path/to/python3.11')"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	touch $@
