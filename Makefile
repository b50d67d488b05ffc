PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes: most of the suite's time is compilation, which one process leaves half of two cores idle in.
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile
export JAX_PLATFORMS ?= cpu

.PHONY: setup demo test test-extended test-all lint docs clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'spark_jax needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup ## speak a sentence with the embedded voice
	$(BIN)/spark-jax synthesize "The children played in the water all day." --output demo.wav

lint: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

# Most of the suite's time is compilation; test-all leaves LLVM's optimization out of the largest programs only.
test test-extended: export XLA_FLAGS ?= --xla_backend_optimization_level=0
test: lint ## in minutes: parity of every model, every training and every command
	$(PYTEST) -m "not slow and not extended"

test-extended: setup ## what is not slow, and not in test
	$(PYTEST) -m "extended and not slow"

test-all: lint ## with the slow proofs
	$(PYTEST) -m "slow or not slow"

docs: $(VENV)/.docs ## the documentation as a site in site/; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo.wav site
