PYTHON ?= python3
VENV ?= .venv

# train-…, publish
PRESET ?= # the recipe's default
RUN ?= # default: runs/<recipe>-<preset>
DATA ?= # folder of the corpus; default: download
WEIGHTS ?= # train-captions: CNN weights (safetensors); default: download

# test: folder of corpora; tests that need one are skipped without it
ifneq ($(wildcard ../shared/data),)
export TEST_DATA ?= $(abspath ../shared/data)
endif

BIN = $(VENV)/bin
SERVING = $(VENV)/.serving-installed
DEVELOPMENT = $(VENV)/.development-installed
# Ray and the peers of `bench` are large and pin other versions than the server, so they get environments of their own.
PEERS = .venv-bench/.installed
CLIENTS = .venv-clients/.installed
RAY = .venv-ray/.installed

.PHONY: help install serve test test-fast test-clients test-deploy test-ray check bench bench-cells bench-corpus bench-neighbours bench-scale bench-training bench-typing fuzz audit train-language-model train-subword-language-model train-digits train-numbers train-captions publish lock
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 32

install: $(SERVING) ## install the server into .venv, without torch

serve: $(SERVING) ## start the server
	$(BIN)/seqserve serve

test: $(DEVELOPMENT) ## run all tests: in parallel (WORKERS=3), then the serial ones; ARGS=pytest options
	$(PARALLEL) $(ARGS)
	$(BIN)/python -m pytest -m serial $$(grep -rl --include='test_*.py' mark.serial tests) $(ARGS)

test-fast: $(DEVELOPMENT) ## run the tests without end-to-end, training and serial ones
	$(PARALLEL) --ignore tests/e2e --ignore tests/training $(ARGS)

.PHONY: coverage
coverage: $(DEVELOPMENT) ## run the tests without end-to-end and serial ones; fail below the least coverage of app/ and training/
	$(PARALLEL) --ignore tests/e2e --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --include 'app/*' --fail-under 94
	$(BIN)/coverage report --include 'training/*' --fail-under 98

# A file's tests share a worker, and so the fixtures of its module. On two cores a third worker runs while others wait for servers.
PARALLEL = $(BIN)/python -m pytest -m 'not serial' --numprocesses $(or $(WORKERS),3) --dist loadfile

test-deploy: $(DEVELOPMENT) ## run the tests of deploy/; they need nginx (Debian package nginx-light) and kubectl
	$(BIN)/python -m pytest tests/deploy $(ARGS)

test-ray: $(RAY) ## run the tests of replicas on Ray Serve: two minutes
	.venv-ray/bin/python -m pytest -o filterwarnings=default --confcutdir tests/server/ray tests/server/ray $(ARGS)

test-clients: $(SERVING) $(CLIENTS) ## run the real clients of other APIs against a server, in an environment of their own: a minute
	SERVER_PYTHON=$(BIN)/python .venv-clients/bin/python -m pytest -W default --confcutdir tests/clients/compatible tests/clients/compatible $(ARGS)

check: $(DEVELOPMENT) ## check format, lint, types and imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEVELOPMENT) $(PEERS) ## benchmark against eager torch and other servers: 30 minutes, 6 GiB of disk
	$(BIN)/python tests/bench/language_model.py
	$(BIN)/python tests/bench/digits.py
	$(BIN)/python -m tests.bench.captions
	$(BIN)/python -m tests.bench.page
	$(BIN)/python -m tests.bench.serving.soak --data $(CORPORA)
	$(BIN)/python -m tests.bench.serving --data $(CORPORA)
CORPORA = $(or $(DATA),$(TEST_DATA),$(error bench: DATA names the folder of ptb/, mnist/ and flickr8k/))

bench-neighbours: $(DEVELOPMENT) ## measure a typist and a probe beside 30 hostile loads: 4 minutes
	$(BIN)/python -m tests.bench.neighbours

bench-cells: $(DEVELOPMENT) ## benchmark our LSTM variants against torch.nn.LSTM, in training
	$(KEEP_MEMORY) $(BIN)/python tests/bench/cells.py

bench-training: $(DEVELOPMENT) ## measure training in one process of two threads and two of one: a minute
	$(KEEP_MEMORY) $(BIN)/python -m tests.bench.training

bench-corpus: $(DEVELOPMENT) ## measure the memory of tokenizing and training on a large text: GIGABYTES=4 takes ten minutes
	$(BIN)/python -m tests.bench.large_corpus --gigabytes $(or $(GIGABYTES),4) $(ARGS)

bench-typing: $(DEVELOPMENT) ## measure suggestions and scores of everyday English: DATA=corpora/everyday2 MODELS="everyday ptb" WORDS=10000
	OMP_NUM_THREADS=1 $(BIN)/python -m training typing --data $(or $(DATA),$(TEST_DATA)/everyday2) \
		--model $(or $(MODELS),everyday ptb) --words $(or $(WORDS),10000) $(ARGS)
	$(BIN)/python -m tests.bench.beginnings
	$(BIN)/python -m tests.bench.brute_force --data $(or $(DATA),$(TEST_DATA)/everyday2)

bench-scale: $(DEVELOPMENT) $(RAY) ## benchmark several replicas, behind nginx and on Ray Serve: ten minutes
	$(BIN)/python -m tests.bench.scale

fuzz: $(DEVELOPMENT) ## fuzz the server against its OpenAPI document with 10,000 examples, and the bundles by flipped bits: 30 minutes
	FUZZ_EXAMPLES=$(or $(EXAMPLES),2500) $(BIN)/python -m pytest -o timeout=0 -rP tests/e2e/test_fuzz.py
	$(BIN)/python tests/bench/hostile.py
	$(BIN)/python -m tests.bench.flipped_bits

audit: $(DEVELOPMENT) ## look up known vulnerabilities of the pinned packages
	@$(BIN)/python .ci/audit

train-language-model: $(DEVELOPMENT) ## train, or resume: PRESET=cpu DATA=corpora/ptb RUN=runs/language-model-cpu
	$(call train,language-model,$(or $(PRESET),cpu))

train-subword-language-model: $(DEVELOPMENT) ## train, or resume: PRESET=everyday DATA="corpora/everyday2 corpora/everyday2-more"
	$(call train,subword-language-model,$(or $(PRESET),everyday))

train-digits: $(DEVELOPMENT) ## train, or resume: PRESET=best DATA=corpora/mnist
	$(call train,digits,$(or $(PRESET),best))

train-numbers: $(DEVELOPMENT) ## train, or resume: DATA=corpora/mnist
	$(call train,numbers,numbers)

train-captions: $(DEVELOPMENT) ## train, or resume: PRESET=best DATA=corpora/flickr8k
	$(call train,captions,$(or $(PRESET),best))

# $(1) the recipe, $(2) the preset
train = $(KEEP_MEMORY) $(BIN)/python -m training $(1) $(2) --run $(call run,$(1),$(2)) \
	$(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(wildcard $(call run,$(1),$(2))/checkpoint.pt),--resume)
run = $(or $(RUN),runs/$(1)-$(2))

# Let glibc keep freed memory: each step allocates the same large arrays, and page faults would cost 25 % of it
KEEP_MEMORY = MALLOC_TOP_PAD_=1073741824 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

publish: $(DEVELOPMENT) ## publish a finished run into models_store: RUN=runs/language-model-cpu
	$(BIN)/python -m training publish $(RUN) $(if $(DATA),--data $(DATA))

lock: ## update requirements/ from pyproject.toml, with uv; delete the files first to upgrade all
	uv pip compile $(LOCK) pyproject.toml --extra traces --extra train --extra test --output-file requirements/development.txt
	uv pip compile $(LOCK) pyproject.toml --constraints requirements/development.txt --output-file requirements/serving.txt
	grep -o '^[a-z0-9][^\\]*' requirements/development.txt | grep -v '^opentelemetry' | \
		uv pip compile $(LOCK) pyproject.toml --extra bench --constraints - --output-file requirements/bench.txt
	printf '%s\n' httpx pytest pytest-timeout | \
		uv pip compile $(LOCK) pyproject.toml - --extra ray --constraints requirements/development.txt --output-file requirements/ray.txt
	uv pip compile $(LOCK) --no-strip-extras --group pyproject.toml:clients --output-file requirements/clients.txt
LOCK = --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url

# All packages are pinned with hashes; seqserve itself has none and is installed without dependencies.
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

$(RAY): requirements/ray.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --require-hashes --requirement requirements/ray.txt
	touch $@

# The list is complete; pip's resolver would look for other versions of packages with extras.
$(CLIENTS): requirements/clients.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/clients.txt
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "seqserve needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); choose one: make PYTHON=python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

.PHONY: docs
docs: $(DEVELOPMENT) ## write docs/settings.md and docs/openapi.json from the code
	$(BIN)/python -m tests.documents
