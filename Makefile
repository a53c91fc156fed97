# Spotter. `make` lists the targets; README.md tells what they do.
.DEFAULT_GOAL := help
SHELL := /bin/sh

export PYTHON ?= python3
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

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Settings: IMAGES=folder-or-glob OUTPUT=folder JOB=name-or-file DEVICE=cpu|cuda PRESET=name-or-file START=fast OFFLINE=1; see .env.example'

.PHONY: run
run: ## run the job: IMAGES=, OUTPUT=, JOB=; starts the stack if it is not up
	@./spotter run $(OPTIONS)

.PHONY: profile
profile: ## run the job afresh and say where its time went: COMPARE=run beside that; RUN=run shows that alone
	@./spotter profile $(if $(RUN),--run '$(RUN)') $(if $(COMPARE),--compare '$(COMPARE)') $(OPTIONS)

.PHONY: fetch
fetch: ## get the models from the hub: what is missing, with bytes as they come; verifies all
	@./spotter fetch

.PHONY: up
up: ## start the detector and vLLM, wait until they can answer
	@./spotter up

.PHONY: down
down: ## stop the stack; requests in flight may finish
	@./spotter down

.PHONY: status
status: ## show the services
	@./spotter status

.PHONY: logs
logs: ## show the services' logs: SERVICE=vllm or detector, FOLLOW=1
	@./spotter logs $(SERVICE) $(if $(FOLLOW),--follow)

.PHONY: build
build: ## build the containers' images, where they are missing or old; needs Docker
	@./spotter build

.PHONY: shell
shell: ## open a shell where a service runs: SERVICE=vllm or detector
	@./spotter shell $(SERVICE)

.PHONY: clean
clean: ## stop the stack, remove its state and images; asks first; CACHES=1: models too; YES=1: do not ask
	@./spotter clean $(if $(CACHES),--caches) $(if $(YES),--yes)

.PHONY: smoke
smoke: ## see that all works here: stack from nothing, job, answers, logs, nothing left
	@./spotter smoke

.PHONY: doctor
doctor: ## say what this host has and lacks, and what to do; changes nothing: JSON=1
	@./spotter doctor $(if $(JSON),--json)

.PHONY: preflight
preflight: ## check preset, model and job, loading no weights: FULL=1 with vLLM's own code, JSON=1
	@./spotter preflight $(if $(FULL),--full) $(if $(JSON),--json)

.PHONY: ladder
ladder: ## see one job get faster in five steps, and why; also on the running stack; takes 6 minutes, OPTIONS=--help
	@scripts/python.sh scripts/environments.py bench
	@$(BENCH).ladder $(OPTIONS)

.PHONY: bench
bench: ## measure Spotter against what one would take instead; also on the running stack; 5 minutes: OPTIONS=--quick
	@scripts/python.sh scripts/environments.py bench
	@$(BENCH).compare $(OPTIONS)

.PHONY: sweep
sweep: ## find the concurrency that the running model server wants: OPTIONS=--write puts it into .env
	@scripts/python.sh scripts/environments.py bench
	@$(BENCH).sweep $(OPTIONS)

.PHONY: check
check: dev ## check style and types and run the quick tests, beside each other: a minute
	@$(MAKE) --no-print-directory --jobs=2 --output-sync lint quick

.PHONY: quick
quick: dev
	$(DEV)/python -m pytest -q -n 2 -m 'not slow' tests/unit tests/contract

.PHONY: test
test: dev ## run all tests, on the real services, three at once: TESTS= for some of them, with pytest's options
	@scripts/python.sh scripts/environments.py detector-cpu vllm-cpu
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
	$(DEV)/shellcheck spotter scripts/*.sh images/*.sh .ci/run
	$(DEV)/shfmt -d spotter scripts/*.sh images/*.sh .ci/run
	scripts/lint_compose.sh

.PHONY: format
format: dev ## bring the code into the house's style
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

.PHONY: lock
lock: ## resolve the dependencies of pyproject.toml anew; needs a package index
	@scripts/python.sh scripts/lock.py

.PHONY: dev
dev:
	@scripts/python.sh scripts/environments.py $@
