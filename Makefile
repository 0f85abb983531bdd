# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv, installs, and does its job.

PYTHON ?= python3
POOL ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: demo test test-slow test-gpu bench-gpu test-slurm test-hosts test-kubernetes lint docs bench clean help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -e 's/:.*## /\t/' | expand -t 12
	@echo
	@echo 'POOL=path       make demo: curate these embeddings in place of the digits'
	@echo 'BENCHES="..."   make bench: these scripts of benchmarks/ alone'
	@echo 'ARGS="..."      further arguments of the command that a target runs'
	@echo 'PYTHON=python3  the Python (3.11 or later) that .venv is made with'

demo: $(VENV)/.installed-demo  ## Curate a pool of handwritten digits, or POOL=path, on a local Dask cluster
	$(BIN)/daskcurate demo $(if $(POOL),"$(POOL)") $(ARGS)

# Files of tests run in so many processes side by side. Each test has threads of its own: more would wait for cores.
JOBS ?= 2

test: $(VENV)/.installed-test  ## Run the tests (JOBS=2: so many files at a time)
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.installed-test  ## Run the tests that take long
	$(BIN)/pytest -m "slow and not gpu" $(ARGS)

# A Python that has all of it already (cupy from the extra gpu-cu12 or gpu-cu13): nothing is installed, so that a
# machine without a network will do. Without GPU_PYTHON: .venv, with that extra installed by hand.
GPU_PYTHON ?= $(BIN)/python
GPU_READY := $(if $(filter-out $(BIN)/python,$(GPU_PYTHON)),,$(VENV)/.installed-test)
GPU_TESTS := tests/kernels tests/test_device.py tests/cluster_setup/test_local_cuda.py
OUT ?= gpu-results

test-gpu: $(GPU_READY)  ## Run the tests that need an NVIDIA GPU (GPU_PYTHON=python3 OUT=folder)
	@mkdir -p "$(OUT)"
	$(GPU_PYTHON) -m pytest -m gpu -rA -W default --junitxml="$(OUT)/test-gpu.xml" $(GPU_TESTS) $(ARGS)

bench-gpu: $(GPU_READY)  ## Measure k-means, dedup and a whole run on an NVIDIA GPU (GPU_PYTHON, OUT, ARGS="--scale 0.1")
	PYTHONPATH=. $(GPU_PYTHON) benchmarks/gpu.py --out "$(OUT)" $(ARGS)

# Both need root on Debian or Ubuntu: the first installs packages with apt, the second makes network namespaces.
test-slurm: $(VENV)/.installed-test  ## Run the chain on a real SLURM, which is installed and started here
	$(BIN)/pytest tests/slurm $(ARGS)

test-hosts: $(VENV)/.installed-test  ## Run the chain on hosts with addresses of their own, and lose one
	$(BIN)/pytest tests/hosts $(ARGS)

# Of the operator's package the schema alone is needed, and none of what it depends on.
test-kubernetes: $(VENV)/.installed-test  ## Check the Kubernetes manifests against the Dask operator's schema
	@$(PIP) install --no-deps 'dask-kubernetes>=2026.3'
	$(BIN)/pytest tests/cluster_setup/test_kubernetes.py $(ARGS)

lint: $(VENV)/.installed-test  ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## Make the site of docs/ in docs/_build; warnings are errors
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet docs docs/_build $(ARGS)
	@echo 'docs/_build/index.html'

# Every script takes --data, --repeats and --quick; further options with BENCHES=kmeans (python benchmarks/kmeans.py -h).
DATA ?=
BENCHES ?= kmeans dedup hierarchy allocation scaling plan_seconds simulations

bench: $(VENV)/.installed-bench  ## Run the benchmarks (DATA=rows.npy: on own embeddings; ARGS=--quick: small, minutes)
	@set -e; for name in $(BENCHES); do \
	    echo "== $$name"; \
	    $(BIN)/python "benchmarks/$$name.py" $(if $(DATA),--data "$(DATA)") $(ARGS); \
	done

clean:  ## Remove .venv, caches and build files; results stay
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf dask-worker-space dask-scratch-space
	find benchmarks cluster_setup daskcurate pipelines tests -name __pycache__ -prune -exec rm -rf {} +

# One stamp for each set of extras: installed again when pyproject.toml changes, never otherwise.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo 'installing daskcurate[$*] and what it needs into $(VENV): a minute or two'
	@$(PIP) install -e '.[$*]'
	@touch $@

# Only where there is no working one: a virtual environment made by hand is left as it is.
$(VENV)/.made:
	@command -v '$(PYTHON)' > /dev/null || { \
	    echo 'there is no $(PYTHON) here: install Python 3.11 or later, or give PYTHON=/path/to/python3' >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed, and $(PYTHON) is $$('$(PYTHON)' --version 2>&1):" \
	        'give PYTHON=/path/to/python3.11' >&2; \
	    exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || '$(PYTHON)' -m venv $(VENV) || { \
	    echo 'the virtual environment could not be made (Debian and Ubuntu: apt install python3-venv)' >&2; \
	    exit 1; }
	@touch $@
