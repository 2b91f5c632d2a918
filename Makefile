# `make run` and `make test` do their own set-up; a second call starts at once.

# A Python for which everything has a wheel goes first: for 3.13, NumPy 1 must be compiled.
SUITS = -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
CHECK = -m serving.host.backend_python
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11; do \
	$$python $(SUITS) && $$python $(CHECK) && echo $$python && break; done 2> /dev/null),python3)
VENV ?= .venv
BIN = $(VENV)/bin
TORCH_CPU_INDEX = https://download.pytorch.org/whl/cpu

# GPU=1 installs the builds of torch and ONNX Runtime with CUDA; later calls keep them, with or without it.
GPU ?= $(wildcard $(VENV)/.installed-gpu)
INSTALLED = $(VENV)/.installed$(if $(GPU),-gpu)

.PHONY: install run check test test-all chaos soak bench bench-poisoning overload strangers fuzz lock clean

install: $(INSTALLED)
	@echo "The dependencies are in $(VENV)."

run: $(INSTALLED)
	@$(BIN)/python app.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Modules go to PROCESSES processes; ORDER=random, or ORDER=NUMBER to repeat such a run, shuffles the tests.
PROCESSES ?= $(shell nproc)
SHUFFLE := $(if $(ORDER),--shuffle=$(patsubst random,$(shell date +%s),$(ORDER)))
PYTEST = $(BIN)/python -m tests.run --durations=10 $(SHUFFLE)
PARALLEL = -n $(PROCESSES) --no-loadscope-reorder

# The fast tier: under 8 minutes on 2 cores.
test: check
	$(PYTEST) $(PARALLEL) -m "not full"

# Everything; the tests that need the machine to themselves come last, one by one. A few that fail are run again by themselves.
test-all: check
	$(PYTEST) --again $(PARALLEL) -m "not alone"
	$(PYTEST) --again -m alone

# Three times what this machine can serve is offered for a minute.
overload: $(INSTALLED)
	$(BIN)/python -m benchmarks --model packaged --only overload --seconds 60 --repeats 1 --out benchmarks/results/overload

# Faults on the real pipeline under load; some need mounts of their own (root or user namespaces) or PostgreSQL.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.e2e.chaos --out benchmarks/results/chaos $(if $(ONLY),--only $(ONLY))

# Half load and a promotion every minute; nothing may grow.
soak: SECONDS ?= 1800
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.e2e.soak --out benchmarks/results/soak --seconds $(SECONDS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --model packaged
	$(BIN)/python -m benchmarks --model bert-base

# What turned labels of one sender do to the next model, and which senders are put into quarantine.
bench-poisoning: $(INSTALLED)
	$(BIN)/python -m benchmarks.poisoning

# Every test that SECURITY.md names; those of another account of the machine need root. Prints what strangers get, as a table.
strangers: $(VENV)/.installed-dev
	$(BIN)/pytest -q $$($(BIN)/python -m tests.security_page)

# Feeds what parses bytes with bytes that nobody would think of; SECONDS over all targets.
fuzz: SECONDS ?= 600
fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

define ENVIRONMENT
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: Python 3.11 to 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) $(CHECK)
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

# Torch comes first and alone, so that only it is looked for in PyTorch's own index of builds without CUDA;
# the other packages come from where pip is set up to find them.
$(VENV)/.installed: requirements.lock
	$(ENVIRONMENT)
	@echo "Installing the dependencies into $(VENV); this takes some minutes, once."
	@$(BIN)/python -m pip install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_CPU_INDEX) "$$(grep '^torch==' $<)"
	@$(BIN)/python -m pip install --quiet -r $<
	@$(BIN)/python $(CHECK) build
	@touch $@

# `torch===VERSION` accepts no other build of it, such as VERSION+cpu. ONNX Runtime's two builds have the same files.
$(VENV)/.installed-gpu: requirements-gpu.lock
	$(ENVIRONMENT)
	@echo "Installing the dependencies with CUDA into $(VENV); this downloads about 3 GB, once."
	@$(BIN)/python -m pip uninstall -qq --yes onnxruntime onnxruntime-gpu
	@$(BIN)/python -m pip install --quiet -r $<
	@$(BIN)/python $(CHECK) build
	@touch $@

# This lock and the next have no build of ONNX Runtime, and accept every build of torch.
$(VENV)/.installed-dev: requirements-dev.lock $(INSTALLED)
	@$(BIN)/python -m pip install --quiet -r $<
	@touch $@

$(VENV)/.installed-bench: requirements-bench.lock $(INSTALLED)
	@$(BIN)/python -m pip install --quiet -r $<
	@touch $@

$(VENV)/.installed-fuzz: pyproject.toml $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet "$$(grep -o 'atheris==[0-9.]*' $<)"
	@touch $@

# Pins every dependency for Python 3.11 to 3.13; [tool.uv] in pyproject.toml leaves the CUDA packages out, except for GPUs.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml
lock:
	$(COMPILE) --group dev -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock --extra cpu -o requirements.lock
	$(COMPILE) -c requirements-dev.lock --group bench -o requirements-bench.lock
	$(filter-out pyproject.toml,$(COMPILE)) -c requirements.lock --group gateway -o requirements-gateway.lock
	sed -i "/sys_platform == 'never'/d" requirements.lock requirements-dev.lock requirements-bench.lock
	sed -i 's/^torch===/torch==/' requirements-gpu.lock
	$(COMPILE) --no-config -c requirements-dev.lock --extra gpu -o requirements-gpu.lock
	sed -i 's/^torch==/torch===/' requirements-gpu.lock

# Everything that was learnt and recorded goes; the data files stay.
clean:
	rm -rf model .sentiment
	[ ! -d triton_repo ] || find triton_repo -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
