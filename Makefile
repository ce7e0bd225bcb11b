# Each target is a line or two of plain commands; the README has them for those without make.
# The first target run makes .venv; later ones use it again until pyproject.toml or the lock change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup

.PHONY: env lab course test test-fast lint bench notebooks lock clean

env: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11 to 3.13 is needed; name one: make env PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock -e .
	touch $@

lab: env
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

course: env
	$(BIN)/renal data draw
	$(BIN)/renal run notebooks --output build/course --jobs 2

test: env
	$(PYTEST)

test-fast: env
	$(PYTEST) -m "not slow"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: env
	$(BIN)/python benchmarks/run_all.py

# Run every notebook by its defaults and save it in place, with outputs.
notebooks: env
	$(BIN)/renal run notebooks --in-place
	$(BIN)/renal run notebooks/solutions --in-place

lock: env
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		$(addprefix --extra ,dask dev openslide optuna organs viewer) \
		--no-header --no-annotate pyproject.toml -o requirements.lock

clean:
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
