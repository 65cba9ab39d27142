# `make` alone lists the targets. Everything lives in .venv and demo/; nothing else is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos mutants coverage lint docs pipelines images push test-images test-scale manifests banepa bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with all that the project, its tests and its tools need
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Done. To use rsp in this shell: source $(BIN)/activate")

# torch goes in first, by itself: pip then finds its needs met and does not look for another build. Most modules are
# never imported; those that are get compiled then.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed, and $(PYTHON) is another; name it with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## From nothing to a served model: HelloWorld on a generated town, or on SCENE=<folder> of your own
	$(BIN)/python -m examples.demo --out demo $(if $(SCENE),--scene '$(SCENE)')

# Three processes on two processors: much of a test is waiting for servers.
test: setup ## Run all tests that need no cluster
	@tests/install.sh
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

chaos: setup ## Kill servers, workers and stores under load, and print what came of it (CHAOS=<rows> for some)
	$(BIN)/python -m tests.chaos $(CHAOS)

mutants: setup ## Check that the tests notice each of the wrong versions in tests/mutants (MUTANTS=<words> for some)
	$(BIN)/python -m tests.mutants $(MUTANTS)

coverage: setup ## Run all tests and show which lines, branches and functions none of them enters
	@tests/install.sh
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet
	$(BIN)/coverage report
	$(BIN)/python -m tests.uncovered coverage.json

lint: setup ## Check style, types, the one-way imports and the Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=src $(BIN)/mypy -p rsp -p examples
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint components/Dockerfile components/bases.Dockerfile components/code.Dockerfile serving/Dockerfile

docs: setup ## Regenerate what the docs take from the code, dashboard and alerts; build the site into site/
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html"

pipelines: setup ## Compile every pipeline into pipelines/compiled
	$(BIN)/rsp pipeline compile --all pipelines/compiled

images: setup ## Build the images of all tools and of TorchServe from the commit, or those in NAMES="cover serving"
	@components/images.sh $(NAMES)

push: setup ## Build them, and push them with their bases to RSP_IMAGE_REGISTRY
	@components/images.sh --push $(NAMES)

test-images: setup ## Build the images with a real engine, and run every tool and two pipelines in them (as root)
	@tests/images/install.sh
	$(BIN)/pytest tests/images/images.py

test-scale: setup ## Predict 100,000 tiles in blocks, killed ten times (TILES=<number>); a country of BUILDINGS=10^6
	$(BIN)/python -m tests.scale_country $(BUILDINGS)
	$(BIN)/python -m tests.scale $(TILES)

manifests: setup ## Print the manifests of OVERLAY (gpu, local, front ...) with the images of this commit, for kubectl apply -f -
	@$(BIN)/python -m rsp.components.container k8s/overlays/$(or $(OVERLAY),gpu)

banepa: setup ## Train on real drone imagery in DATA=<folder> three times and evaluate (80 CPU-minutes; FLAGS=--inner)
	$(BIN)/python -m examples.banepa.run --data '$(DATA)' --out banepa $(FLAGS)

bench: setup ## Measure against rivals, in one run, as ratios of CPU time; WORDS="cover tile" runs some, else docs/benchmarks.md is written
	@tests/install.sh
	$(BIN)/python -m tests.bench $(or $(WORDS),--write docs/benchmarks.md)

clean: ## Remove what setup, demo and the tools made
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage* coverage.json
