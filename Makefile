# Set-up is part of every target: a virtual environment with the tested versions.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*?## ' Makefile | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON=$(PYTHON): allowed is Python 3.11 or newer; set PYTHON=python3.12, say"; exit 2; }
	@echo "Setting up $(VENV) (PyTorch and friends: a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt torch
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,mpi,dashboards,peers]'
	@touch $(VENV)/.ready

.PHONY: setup
setup: $(VENV)/.ready ## the virtual environment, with the tested versions

# Where torch brings no Triton of its own, as on a processor: Triton's interpreter and its compiler
# for GPUs, by which tests run the kernels.
TRITON := triton==3.9.0
$(VENV)/.gpu-ready: $(VENV)/.ready
	@$(RUN) -c 'import triton' 2>/dev/null || \
	  $(RUN) -m pip install --disable-pip-version-check --no-deps $(TRITON)
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	@touch $(VENV)/.gpu-ready

.PHONY: setup-gpu
setup-gpu: $(VENV)/.gpu-ready ## setup, and other people's Triton kernels: strategy.kernel=liger and two peers

.PHONY: bench
bench: setup ## the main job: simple, tp, ep at top-k 2, 4, 8 on 8 ranks; tables, plots, W&B runs
	$(RUN) runners/bench.py -m strategy=simple,tp,ep topk=2,4,8

REFERENCE := outputs/$(shell date +%F_%H-%M-%S)_reference
.PHONY: reference
reference: setup ## the reference's three axes, and one report on them together; OVERRIDES="measure=reference"
	for axis in topk batch ranks; do \
	  $(RUN) runners/bench.py experiment=reference_$$axis report=false \
	    hydra.sweep.dir=$(REFERENCE)/$$axis $(OVERRIDES) || [ $$? -eq 1 ] || exit 2; done
	$(RUN) -m analysis show $(REFERENCE)
	$(RUN) -m analysis show $(REFERENCE) --format markdown -o $(REFERENCE)/tables/tables.md
	$(RUN) -m analysis show $(REFERENCE) --format csv -o $(REFERENCE)/tables/tables.csv
	$(RUN) -m analysis plot $(REFERENCE) -o $(REFERENCE)/plots
	$(RUN) -m analysis report $(REFERENCE) -o $(REFERENCE)/report.html

.PHONY: report
report: setup ## one HTML page on the newest sweep
	$(RUN) -m analysis report

.PHONY: test
test: setup-gpu ## every test that CI runs, on all cores; T=pattern for those whose names match
	$(RUN) -m pytest -q -m "not slow and not browser" \
	  $(if $(T),-k "$(T)",-n auto --dist worksteal --durations=5 --budget 360)

.PHONY: test-browser
test-browser: setup-gpu ## the report in headless Chromium, which must be installed
	@$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -q -m browser

.PHONY: test-full
test-full: setup-gpu ## every accepted way to spread the layer against the oracle, the whole product
	$(RUN) -m pytest -q -m slow tests/dist/test_agree.py tests/dist/test_gpu.py

.PHONY: faults
faults: setup ## every fault 20 times, 50 killed launchers, bad input (hours; some faults need root)
	$(RUN) -m benchmarks.faults --times 20
	$(RUN) -m benchmarks.faults --fault launcher --times 50
	EXAMPLES=5000 $(RUN) -m pytest -q --timeout 7200 tests/system/test_bad_input.py
	EXAMPLES=1000 $(RUN) -m pytest -q --timeout 7200 tests/unit/runners/test_damage.py

.PHONY: soak
soak: setup ## CELLS=500 cells with random faults until every one has ended
	$(RUN) -m benchmarks.faults.soak --cells $(or $(CELLS),500)

.PHONY: test-slurm
test-slurm: setup ## the sweep on a real Slurm: two nodes on this machine (root; apt-get install slurm-wlm munge)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	$(RUN) -m pytest -q tests/system/slurm/check_slurm.py

.PHONY: test-ray
test-ray: setup ## the sweep on a real Ray: two nodes that share no folder (root; apt-get install iproute2)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(RUN) -m pytest -q tests/system/ray/check_ray.py

.PHONY: test-hosts
test-hosts: setup ## the sweep on two hosts: two network namespaces (root; apt-get install iproute2)
	$(RUN) -m pytest -q tests/system/hosts/check_hosts.py

.PHONY: test-emulate
test-emulate: setup ## an emulated cluster of 4 ranks: shaped links, paced ranks (Linux; apt-get install iproute2)
	$(RUN) -m pytest -q tests/system/emulate/check_emulated.py

BUILDER ?= docker
.PHONY: test-image
test-image: ## the container built, and a sweep in it without a network (BUILDER=docker or podman); IMAGE="--build-arg BASE=..."
	$(BUILDER) build -t moe-bench $(IMAGE) .
	$(BUILDER) run --rm --network=none moe-bench \
	  python runners/bench.py -m strategy=tp,ep world_size=2 measure=quick

.PHONY: getting-started
getting-started: setup ## README.md and docs/getting-started.md anew: every command, with what it prints
	$(RUN) -m benchmarks.docs.console README.md docs/getting-started.md

.PHONY: notebook
notebook: setup ## docs/example.ipynb executed on the newest sweep
	@$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[notebook]'
	$(RUN) -m benchmarks.docs.notebook

.PHONY: reference-tables
reference-tables: setup ## the tables of docs/results/reference.md measured again, in the reference's style of code and in ours
	$(RUN) -m benchmarks.docs.results --measure reference

.PHONY: results
results: setup ## the pages of docs/results/ again, from the figures in benchmarks/results/
	$(RUN) -m benchmarks.docs.results

.PHONY: gallery
gallery: setup ## docs/results/gallery.md and gallery.html again, from the packed files in docs/results/packed
	$(RUN) -m analysis.packing.gallery

# An environment beside the other: these systems' own requirements would replace torch.
PEERS := .venv-peers
DEEPSPEED := deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 py-cpuinfo==9.0.0 psutil==7.2.2 \
  msgpack==1.2.4 ninja==1.13.2
TORCHTITAN := torchtitan==0.3.0 $(TRITON) spmd_types==0.2.3 tyro==1.0.17 torchdata==0.11.0 \
  torch_checkpointing==0.1.1 docstring-parser==0.18.0

$(PEERS)/.ready: $(VENV)/.ready Makefile
	@$(PYTHON) -m venv $(PEERS)
	@$(RUN) -c 'import site; print(site.getsitepackages()[0])' > $$(echo $(PEERS)/lib/python3*/site-packages)/ours.pth
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps wheel 'setuptools<81'
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps $(TORCHTITAN)
	@DS_BUILD_OPS=0 $(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps \
	  --no-build-isolation $(DEEPSPEED)
	@touch $(PEERS)/.ready

.PHONY: peers
peers: setup $(PEERS)/.ready ## torchtitan and DeepSpeed for real, in .venv-peers: fails where they cannot run
	$(PEERS)/bin/python -m pytest -q tests/system/peers_installed.py

# Pure wheels for a machine without Hydra and without a network: benchmarks/gpu/bench.py unpacks them.
GPU_WHEELS := .cache/gpu-wheels
.PHONY: gpu-wheels
gpu-wheels: setup ## wheels that python -m benchmarks.gpu brings to a bare GPU machine, in .cache/gpu-wheels
	rm -rf $(GPU_WHEELS)
	$(RUN) -m pip wheel --disable-pip-version-check --no-deps -c constraints.txt -w $(GPU_WHEELS) \
	  hydra-core omegaconf antlr4-python3-runtime liger-kernel moe-ops

.PHONY: check
check: setup ## lint, formatting, types, and known vulnerabilities where they can be asked for
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m benchmarks.docs.audit

.PHONY: clean
clean: ## the virtual environment and caches; outputs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
