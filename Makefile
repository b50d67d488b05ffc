PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: setup demo test test-all lint clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'spark_jax needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup ## speak a sentence with the embedded voice
	$(BIN)/spark-jax synthesize "The children played in the water all day." --output demo.wav

lint: setup
	$(BIN)/ruff check .

test: lint
	$(BIN)/python -m pytest --quiet

test-all: lint ## with the slow proofs
	$(BIN)/python -m pytest --quiet -m "slow or not slow"

clean:
	rm -rf $(VENV) demo.wav
