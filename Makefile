# Two commands: `make demo` and `make test`. Both set .venv up themselves.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-faults lint bench tables clean

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "windfire needs $(PYTHON): install it or set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/windfire demo $(if $(DATA),--data '$(DATA)') $(if $(MAPPING),--mapping '$(MAPPING)') $(if $(PORT),--port $(PORT)) $(if $(ONCE),--once)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults

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

tables: $(STAMP)
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) build *.egg-info
