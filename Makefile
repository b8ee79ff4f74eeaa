# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out

.PHONY: demo test check static docs wheel-test bench clean

demo: $(VENV)/.ready
	@mkdir -p $(OUT)
	$(BIN)/onnxcomp optimize models/digits_vgg.onnx -p "tucker2,int8" -o $(OUT)/digits_vgg.small.onnx \
	  --data models/digits_calibration.npz --eval models/digits_eval.npz --report $(OUT)/digits_vgg.html

# Two processes fill two cores: more threads of the linear algebra in each would only wait for one another.
test: $(VENV)/.ready-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

static: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation site, into site/, and what a reader would find wrong with it; open site/index.html, no server is needed.
docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	ONNXCOMP_SITE=site $(BIN)/pytest -q tests/test_site.py

check: test static docs

# Build the wheel and run the tests against it, installed in a clean environment, away from the checkout's packages.
wheel-test: $(VENV)/.ready-dev
	bash scripts/wheel_test.sh $(BIN)/python

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.ready-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	@bash scripts/browser.sh $(BIN)/python
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@bash scripts/browser.sh $(BIN)/python
	@touch $@ $(VENV)/.ready-test $(VENV)/.ready

clean:
	rm -rf $(VENV) $(OUT) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
