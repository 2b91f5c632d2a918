# `make run` and `make test` do their own set-up; a second call starts at once. `make help` lists all targets.

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

# A comment directly above a target is its line in `make help`.
.PHONY: install help run check test test-all containers overload chaos soak bench bench-poisoning bench-drift strangers fuzz lock clean

# Install the dependencies into .venv; GPU=1 installs those for an NVIDIA GPU. `make` alone does this, too.
install: $(INSTALLED)
	@echo "The dependencies are in $(VENV)."

# List the targets.
help:
	@awk '/^# /{about = about substr($$0, 2); next} /^[a-z-]+:/ && about {split($$0, name, ":"); printf "%-16s%s\n", name[1], about} {about = ""}' Makefile

# Train the first model if there is none, and run the pipeline until Ctrl-C.
run: $(INSTALLED)
	@echo "The dependencies are in $(VENV). Starting the pipeline; Ctrl-C stops it."
	@$(BIN)/python app.py

# Check the style and the types of the code, with ruff and mypy.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# Modules go to PROCESSES processes; ORDER=random, or ORDER=NUMBER to repeat such a run, shuffles the tests.
PROCESSES ?= $(shell nproc)
SHUFFLE := $(if $(ORDER),--shuffle=$(patsubst random,$(shell date +%s),$(ORDER)))
PYTEST = $(BIN)/python -m tests.run --durations=10 $(SHUFFLE)
PARALLEL = -n $(PROCESSES) --no-loadscope-reorder

# Run `check` and the fast tests: under 8 minutes on 2 cores. PROCESSES=4 uses as many processes; ORDER=random shuffles.
test: check
	$(PYTEST) $(PARALLEL) -m "not full"

# Run all tests: 45 to 60 minutes on 2 cores. Tests that need the machine to themselves run last, one by one.
test-all: check
	$(PYTEST) --again $(PARALLEL) -m "not alone"
	$(PYTEST) --again -m alone

# Build the images and run docker-compose.yml on a Docker of its own. Needs root, debootstrap and slirp4netns.
containers: $(VENV)/.installed-dev
	CONTAINERS=1 $(BIN)/python -m tests.run -s --durations=0 tests/containers

# Send the pipeline three times what this machine can serve, for a minute.
overload: $(INSTALLED)
	$(BIN)/python -m benchmarks --model packaged --only overload --seconds 60 --repeats 1 --out benchmarks/results/overload

# Cause faults in the real pipeline under load; ONLY=disk-full causes one. Some need root, user namespaces or PostgreSQL.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.e2e.chaos --out benchmarks/results/chaos $(if $(ONLY),--only $(ONLY))

# Run the pipeline at half load, with a promotion every minute, and report whether anything grows or is lost. SECONDS=1800 is the default;
# RATE=25 sets the live requests a second.
soak: SECONDS ?= 1800
soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.e2e.soak --out benchmarks/results/soak --seconds $(SECONDS) $(if $(RATE),--rate $(RATE))

# Measure the engine and the servers on this machine, beside other servers.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --model packaged
	$(BIN)/python -m benchmarks --model bert-base

# Measure what wrong labels of one sender do to the next model, and which senders are put into quarantine.
bench-poisoning: $(INSTALLED)
	$(BIN)/python -m benchmarks.poisoning

# Measure what the checks notice and estimate on other kinds of texts than the training data.
bench-drift: $(INSTALLED)
	$(BIN)/python -m benchmarks.drift

# Run every test that SECURITY.md names, and print what strangers get, as a table. Some tests need root.
strangers: $(VENV)/.installed-dev
	$(BIN)/pytest -q $$($(BIN)/python -m tests.security_page)

# Feed random bytes to every parser; SECONDS=600 is the default, over all parsers.
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
	@$(BIN)/python -m pip install --no-deps --retries 1 --extra-index-url $(TORCH_CPU_INDEX) "$$(grep '^torch==' $<)"
	@$(BIN)/python -m pip install -r $<
	@$(BIN)/python $(CHECK) build
	@touch $@

# `torch===VERSION` accepts no other build of it, such as VERSION+cpu. ONNX Runtime's two builds have the same files.
$(VENV)/.installed-gpu: requirements-gpu.lock
	$(ENVIRONMENT)
	@echo "Installing the dependencies with CUDA into $(VENV); this downloads about 3 GB, once."
	@$(BIN)/python -m pip uninstall -qq --yes onnxruntime onnxruntime-gpu
	@$(BIN)/python -m pip install -r $<
	@$(BIN)/python $(CHECK) build
	@touch $@

# This lock and the next have no build of ONNX Runtime, and accept every build of torch.
$(VENV)/.installed-dev: requirements-dev.lock $(INSTALLED)
	@$(BIN)/python -m pip install --quiet -r $<
	@touch $@

# optimum needs another transformers, so it lies in a directory of its own, which only its server reads.
$(VENV)/.installed-bench: requirements-bench.lock benchmarks/baselines/optimum.txt $(INSTALLED)
	@$(BIN)/python -m pip install --quiet -r $<
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/optimum -r benchmarks/baselines/optimum.txt
	@touch $@

$(VENV)/.installed-fuzz: pyproject.toml $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet "$$(grep -o 'atheris==[0-9.]*' $<)"
	@touch $@

# For Python 3.11 to 3.13; [tool.uv] in pyproject.toml leaves the CUDA packages out, except for GPUs.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate pyproject.toml

# Pin every dependency anew, with uv.
lock:
	$(COMPILE) --group dev -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock --extra cpu -o requirements.lock
	$(COMPILE) -c requirements-dev.lock --group bench -o requirements-bench.lock
	$(filter-out pyproject.toml,$(COMPILE)) -c requirements.lock --group gateway -o requirements-gateway.lock
	sed -i "/sys_platform == 'never'/d" requirements.lock requirements-dev.lock requirements-bench.lock
	sed -i 's/^torch===/torch==/' requirements-gpu.lock
	$(COMPILE) --no-config -c requirements-dev.lock --extra gpu -o requirements-gpu.lock
	sed -i 's/^torch==/torch===/' requirements-gpu.lock

# Delete the models and all state; the data files, settings and .venv stay.
clean:
	@rm -rf model .sentiment client/build client/*.egg-info
	@[ ! -d triton_repo ] || find triton_repo -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	@echo "The models and all state (model, triton_repo, .sentiment) are deleted."
