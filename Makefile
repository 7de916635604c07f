# Everything here spells a `vton` command; `make help` lists it. Variables go on the command line:
#   make train MODEL=gardiff DATA=viton_hd PRESET=paper ARGS="train.batch_size=2"
MODEL ?= gardiff
DATA ?= synthetic
PRESET ?= tiny
TRAINER ?= auto
ARGS ?=
RUN ?=
PERSON ?= data/examples/person.jpg
GARMENT ?= data/examples/garment.jpg
WORKERS ?= 2
DIR ?=
PYTHON ?= python3
VTON = .venv/bin/vton
CHOSEN = $(if $(RUN),--run $(RUN)) $(if $(filter-out undefined default file,$(origin MODEL)),--model $(MODEL))
GIVEN = $(if $(filter-out undefined default file,$(origin DATA)),data=$(DATA)) $(if $(filter-out undefined default file,$(origin TRAINER)),trainer=$(TRAINER))
READY = .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train eval predict metrics weights compare ablate table data-check demo prepare tryon info bench list notebooks docs tensorboard test test-slow test-full lint format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv with everything; safe to run twice

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vton needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

train: $(READY) ## Train or resume: make train MODEL=gardiff ARGS="train.lr=3e-5"
	$(VTON) train model=$(MODEL) data=$(DATA) preset=$(PRESET) trainer=$(TRAINER) $(ARGS)

eval: $(READY) ## Score the newest run, the newest of MODEL=NAME, or RUN=runs/NAME: table, results.json, picture grids
	$(VTON) eval $(CHOSEN) $(GIVEN) $(ARGS)

predict: $(READY) ## Write the pictures of a run (chosen as for eval) without scoring: make predict OUT=folder
	$(VTON) predict $(CHOSEN) $(GIVEN) --out $(OUT) $(ARGS)

compare: $(READY) ## Compare all architectures and baselines under one budget: make compare ARGS="compare.seeds=[0,1]"
	$(VTON) compare data=$(DATA) preset=$(PRESET) trainer=$(TRAINER) $(ARGS)

ablate: $(READY) ## Compare the rows of a published ablation table: make ablate MODEL=gardiff
	$(VTON) ablate model=$(MODEL) data=$(DATA) preset=$(PRESET) trainer=$(TRAINER) $(ARGS)

table: $(READY) ## Print and write the tables of comparisons again: make table, or make table DIR=results/NAME
	$(VTON) table $(DIR)

data-check: $(READY) ## Name every bad file: make data-check DATA=viton_hd ARGS="data.root=DIR"
	$(VTON) data check data=$(DATA) $(ARGS)

metrics: $(READY) ## Score two folders of pictures: make metrics PRED=DIR TARGET=DIR ARGS="--order unpaired"
	$(VTON) metrics --pred $(PRED) --target $(TARGET) $(ARGS)

tryon: $(READY) ## Put a garment's photo on a person's: make tryon PERSON=a.jpg GARMENT=b.jpg ARGS="--count 2"
	$(VTON) tryon $(PERSON) $(GARMENT) $(CHOSEN) $(ARGS)

demo: $(READY) ## The same on a page in the browser: http://localhost:7860/
	$(VTON) demo $(CHOSEN) $(ARGS)

prepare: $(READY) ## Turn photos of persons and garments into a data folder: make prepare PHOTOS=DIR OUT=DIR
	$(VTON) prepare $(PHOTOS) --out $(OUT) $(ARGS)

weights: $(READY) ## Download and check the pretrained metric networks (0.9 GB)
	$(VTON) weights $(ARGS)

info: $(READY) ## Count parameters, FLOPs and memory: make info MODEL=gardiff PRESET=paper
	$(VTON) info model=$(MODEL) preset=$(PRESET) trainer=$(TRAINER) $(ARGS)

bench: $(READY) ## Measure seconds per training step and picture, and the share of peak FLOPs: make bench MODEL=gardiff
	$(VTON) bench model=$(MODEL) preset=$(PRESET) trainer=$(TRAINER) $(ARGS)

list: $(READY) ## List architectures, presets, data sets, trainers and ablations
	$(VTON) list

notebooks: $(READY) ## Run the notebooks on results/, and write them as pages in build/notebooks
	$(VTON) notebooks $(ARGS)

docs: $(READY) ## Build docs/ as pages in build/docs; a broken link is an error
	.venv/bin/zensical build --strict

tensorboard: $(READY) ## Show curves, pictures, attention and results of every run under runs/
	@echo "The dashboard's layout: http://localhost:6006/#custom_scalars"
	.venv/bin/tensorboard --logdir runs $(ARGS)

test: $(READY) ## Run the tests: 8 to 15 minutes on 2 cores; use WORKERS=8 on more
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(READY) ## Run the slow tests (stops, kills, two processes): 10 to 15 minutes on 2 cores
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m slow -n $(WORKERS) --dist worksteal $(ARGS)

test-full: $(READY) ## Run the paper presets at full size on the CPU: make test-full SCRATCH=DIR (hours, 40 GB of disk, 24 GiB of memory)
	VTON_FULL_SCRATCH=$(SCRATCH) .venv/bin/python -m pytest -m full -s $(ARGS)

lint: $(READY) ## Check rules and format (ruff), and that imports point one way (import-linter)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

format: $(READY) ## Let ruff fix and format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## Remove .venv and caches; keep runs and data
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
