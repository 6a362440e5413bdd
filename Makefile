# Two commands do all the set-up: `make run` (light: no torch) and `make test` (everything, then lint, types, tests).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
export HF_HUB_OFFLINE := 1
# Python keeps the bytecode of the modules that a run uses: pip would compile all of torch and transformers, which takes longer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test exhaustive quick lint schema reports accuracy recorded training types benchmark fuzz faults gpu clean

run: .venv/light
	$(BIN)/qwen-inspect structure

test: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not exhaustive"

exhaustive: .venv/full
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m exhaustive

quick: .venv/full
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow and not exhaustive"

lint: .venv/full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The JSON Schema, from the types in renderers/json.
schema: .venv/full
	$(BIN)/python qwen_inspect/schema/generate.py

reports: .venv/light
	$(BIN)/python reports/generate.py

accuracy: .venv/light
	$(BIN)/python benchmarks/accuracy.py

# Predictions of every recorded run, which take minutes, for `make accuracy` to show.
recorded: .venv/full
	$(BIN)/python benchmarks/predicted.py

training: .venv/full
	$(BIN)/python benchmarks/training.py

types: .venv/full
	$(BIN)/python benchmarks/types.py

benchmark: .venv/full
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/hubs.py
	$(BIN)/python benchmarks/tracing.py
	$(BIN)/python benchmarks/install.py

# Damaged and hostile inputs, a million by default, in under 20 minutes on two cores: SEED=7 INPUTS=50000. Writes reports/fuzzing.md.
fuzz: .venv/full
	$(BIN)/python benchmarks/fuzz/run.py --seed $(or $(SEED),1) --inputs $(or $(INPUTS),1000000) --write

faults: .venv/full
	$(BIN)/python benchmarks/hub_faults.py

# On a machine with a GPU: predicted against measured for models of random weights, nothing downloaded. RECORD=1: every request too.
gpu: .venv/full
	$(BIN)/python benchmarks/gpu/measure.py $(if $(RECORD),--record)

.venv/light: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	$(BIN)/python -m compileall -q qwen_inspect
	touch $@

.venv/full: .venv/light
	$(PIP) --editable ".[all]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
