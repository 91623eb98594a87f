PYTHON ?= python3
VENV ?= .venv

# train-…, publish
PRESET ?= # the recipe's best for this machine if not given
RUN ?= # runs/<recipe>-<preset> if not given
DATA ?= # the folder of the corpus; downloaded if not given, where it can be
WEIGHTS ?= # train-captions: the CNN's, a safetensors file; downloaded if not given

# test: corpora for the tests that need one; they are skipped without
ifneq ($(wildcard ../shared/data),)
export TEST_DATA ?= $(abspath ../shared/data)
endif

BIN = $(VENV)/bin
SERVING = $(VENV)/.serving-installed
DEVELOPMENT = $(VENV)/.development-installed
# Those that `bench` compares with pin other versions than ours, and are not for an environment that serves.
PEERS = .venv-bench/.installed

.PHONY: help install serve test check bench bench-cells fuzz audit train-language-model train-subword-language-model train-digits train-captions publish lock
.DELETE_ON_ERROR:

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 24

install: $(SERVING) ## what the server needs, into .venv; never torch

serve: $(SERVING) ## start the server
	$(BIN)/seqserve serve

test: $(DEVELOPMENT) ## run the tests
	$(BIN)/python -m pytest

check: $(DEVELOPMENT) ## format, lint, types, imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEVELOPMENT) $(PEERS) ## time the models against eager torch, the server against its peers: half an hour, 6 GiB more
	$(BIN)/python tests/bench/language_model.py
	$(BIN)/python tests/bench/digits.py
	$(BIN)/python -m tests.bench.captions
	$(BIN)/python -m tests.bench.page
	$(BIN)/python -m tests.bench.serving.soak --data $(CORPORA)
	$(BIN)/python -m tests.bench.serving --data $(CORPORA)
CORPORA = $(or $(DATA),$(TEST_DATA),$(error bench: DATA names the folder of ptb/, mnist/ and flickr8k/))

bench-cells: $(DEVELOPMENT) ## time the cells that torch lacks against torch's LSTM, as trainings run
	$(KEEP_MEMORY) $(BIN)/python tests/bench/cells.py

fuzz: $(DEVELOPMENT) ## hold the server against its OpenAPI document, with 10,000 examples and more: half an hour
	FUZZ_EXAMPLES=$(or $(EXAMPLES),2500) $(BIN)/python -m pytest -o timeout=0 -rP tests/e2e/test_fuzz.py
	$(BIN)/python tests/bench/hostile.py

audit: $(DEVELOPMENT) ## look for known faults in the pinned packages, where the database can be reached
	@$(BIN)/python .ci/audit

train-language-model: $(DEVELOPMENT) ## train, or go on: PRESET=cpu DATA=corpora/ptb RUN=runs/language-model-cpu
	$(call train,language-model,$(or $(PRESET),cpu))

train-subword-language-model: $(DEVELOPMENT) ## the same: PRESET=everyday DATA="corpora/everyday2 corpora/everyday2-more"
	$(call train,subword-language-model,$(or $(PRESET),everyday))

train-digits: $(DEVELOPMENT) ## the same: PRESET=best DATA=corpora/mnist
	$(call train,digits,$(or $(PRESET),best))

train-captions: $(DEVELOPMENT) ## the same: PRESET=best DATA=corpora/flickr8k
	$(call train,captions,$(or $(PRESET),best))

# $(1) the recipe, $(2) the preset
train = $(KEEP_MEMORY) $(BIN)/python -m training $(1) $(2) --run $(call run,$(1),$(2)) \
	$(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(wildcard $(call run,$(1),$(2))/checkpoint.pt),--resume)
run = $(or $(RUN),runs/$(1)-$(2))

# glibc keeps freed memory: a step allocates the same large arrays anew, and their page faults cost a quarter of it
KEEP_MEMORY = MALLOC_TOP_PAD_=1073741824 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

publish: $(DEVELOPMENT) ## publish a finished run into models_store: RUN=runs/language-model-cpu
	$(BIN)/python -m training publish $(RUN)

lock: ## fit requirements/ to pyproject.toml; delete its files first for the newest versions; needs uv
	uv pip compile $(LOCK) pyproject.toml --extra traces --extra train --extra test --output-file requirements/development.txt
	uv pip compile $(LOCK) pyproject.toml --constraints requirements/development.txt --output-file requirements/serving.txt
	grep -o '^[a-z0-9][^\\]*' requirements/development.txt | grep -v '^opentelemetry' | \
		uv pip compile $(LOCK) pyproject.toml --extra bench --constraints - --output-file requirements/bench.txt
LOCK = --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url

# Every package is pinned and its hash checked; seqserve itself, which has none, is added without its dependencies.
$(SERVING): requirements/serving.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/serving.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(DEVELOPMENT): requirements/development.txt $(SERVING)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/development.txt
	touch $@

$(PEERS): requirements/bench.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes --requirement requirements/bench.txt
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "seqserve needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); choose one: make PYTHON=python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

.PHONY: docs
docs: $(DEVELOPMENT) ## write docs/settings.md and docs/openapi.json from the code
	$(BIN)/python -m tests.documents
