# Targets of the whole job and of its stages; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= stages.yaml
RUN ?= runs/demo
ROUND ?= 1
STRATEGY ?=
SPLIT ?= val
FOLDS ?= 4
PHOTOS ?=
POLYGONS ?=
FILE ?=
WORKERS ?= 2
TEST_WORKERS ?= 2
RUN_OPTIONS := --config $(CONFIG) --run-dir $(RUN)
# A file's tests share what is costly to make; threads of several processes would wait on each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint fix clean-demo stage-data stage-sam-candidates \
	stage-teacher stage-refine stage-calibrate stage-train stage-evaluate rounds inspect \
	bench-refine bench-calibrate bench-strategies import-weights bench-faults bench-objects bench-fuzz bench-scale bench-training bench-loader bench-equality bench-sam bench-oracle

##@ The whole job, and the house
# The lists are in the order of this file; a line "##@ TEXT" begins one.
help: ## list the targets
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\n%s\n' 'Variables, as they are now: make TARGET NAME=VALUE'
	@printf '  %-22s %s\n' \
		'CONFIG=$(CONFIG)' 'the config of the job' 'RUN=$(RUN)' 'the run directory' \
		'ROUND=$(ROUND)' 'the round; 0 is the burn-in' 'STRATEGY=$(STRATEGY)' 'of stage-refine; none takes the chain' \
		'SPLIT=$(SPLIT)' 'of stage-evaluate' 'FOLDS=$(FOLDS)' 'of stage-calibrate' 'WORKERS=$(WORKERS)' 'processes of a stage' \
		'FILE=$(FILE)' 'of import-weights' 'TEST_WORKERS=$(TEST_WORKERS)' 'processes of the tests'

setup: $(VENV)/.installed ## make .venv and install everything

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## the whole job on the embedded data set, two rounds, with a table and a picture
	$(BIN)/run-rounds $(RUN_OPTIONS) --workers $(WORKERS)

test: setup ## lint and all tests but the long ones
	$(MAKE) lint
	$(PYTEST)

test-all: setup ## the long tests too, and examples that make test did not try
	$(PYTEST) -m "not gpu" --hypothesis-profile=search

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

##@ The stages of RUN by CONFIG
stage-data: setup ## data set -> manifest
	$(BIN)/prepare-data $(RUN_OPTIONS)

stage-sam-candidates: setup ## SAM's candidate masks of every training image (the costly pass)
	$(BIN)/sam-candidates $(RUN_OPTIONS) --workers $(WORKERS)

stage-teacher: setup ## the teacher's predictions of round ROUND
	$(BIN)/predict-teacher $(RUN_OPTIONS) --workers $(WORKERS) --round $(ROUND)

stage-refine: setup ## refined labels of round ROUND, by STRATEGY or the config's chain
	$(BIN)/refine-labels $(RUN_OPTIONS) --workers $(WORKERS) --round $(ROUND) \
		$(if $(STRATEGY),--strategy $(STRATEGY))

stage-calibrate: setup ## try all strategies on held-out labelled images; round ROUND takes the best
	for fold in $$(seq $(FOLDS)); do \
		$(BIN)/train-student $(RUN_OPTIONS) --fold $$fold/$(FOLDS) && \
		$(BIN)/predict-teacher $(RUN_OPTIONS) --workers $(WORKERS) --fold $$fold/$(FOLDS) || exit; \
	done
	$(BIN)/refine-labels calibrate $(RUN_OPTIONS) --set calibrate.folds=$(FOLDS) --round $(ROUND) --apply

stage-train: setup ## train the student of round ROUND
	$(BIN)/train-student $(RUN_OPTIONS) --round $(ROUND)

stage-evaluate: setup ## evaluate round ROUND on SPLIT
	$(BIN)/evaluate-student $(RUN_OPTIONS) --round $(ROUND) --split $(SPLIT)

rounds: setup ## the whole job with CONFIG into RUN, resuming
	$(BIN)/run-rounds $(RUN_OPTIONS) --workers $(WORKERS)

import-weights: setup ## published weights FILE (LAVT, SemiRES, Swin, BERT) for CONFIG's network -> RUN/weights/
	$(BIN)/import-weights $(RUN_OPTIONS) $(FILE)

inspect: setup ## what the stores of RUN hold
	$(BIN)/inspect-shards summary $(RUN)

clean-demo: ## forget the demo's results
	rm -rf runs/demo

##@ Measurements behind the figures of README and docs
bench-refine: setup ## matching beside pycocotools and the released loop; the whole stage; its memory
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.refinement
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.refine_stage

bench-calibrate: setup ## hundreds of settings on a thousand expressions
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.calibration

bench-strategies: setup ## every strategy and weight on round ROUND of RUN, against the truth
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.strategies --run-dir $(RUN) --round $(ROUND)

bench-faults: setup ## kill, cut, flip and fill the disk, many times; what was lost (long)
	$(BIN)/python -m benchmarks.faults

bench-objects: setup ## a run directory in an object store beside one on a disk; its requests
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.object_store

bench-fuzz: setup ## 100,000 damaged inputs through every reader (long)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz

bench-scale: setup ## a million items through the runner (long)
	$(BIN)/python -m benchmarks.scale

bench-training: setup ## a training step beside a plain float32 loop; teacher prediction; where time goes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training

bench-loader: setup ## reading a refined label beside the released way; samples a second of a loading process
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.loader

bench-equality: setup ## masks of both profiles beside segment-anything's own generator; PHOTOS=folder adds photos
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sam_equality $(if $(PHOTOS),--photos $(PHOTOS))

bench-sam: setup ## speed beside segment-anything's own generator; bytes and build time of cells; PHOTOS=folder
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sam_speed $(if $(PHOTOS),--photos $(PHOTOS))
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.candidate_stores $(if $(PHOTOS),--photos $(PHOTOS))

bench-oracle: setup ## the best candidate of every true mask; POLYGONS=photos.jsonl adds photos
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.oracle $(if $(POLYGONS),--photos $(POLYGONS))
