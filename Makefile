# Works for a normal user in a fresh clone: everything is installed into .venv, .venvs and .cache.
# `make PYTHON=/path/to/python3` builds .venv with another Python; `make clean` first when there is one already.

PYTHON ?= python3
# The Pythons that the unit tests run on, where they are installed.
VERSIONS := 3.11 3.12 3.13
UNIT := "not server and not checker"

.DEFAULT_GOAL := help
.PHONY: help demo test unit servers programs checkers image dist dashboards manifests preview check format-check lint types format bench bench-rules bench-dashboards lock upgrade clean

help: ## list what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: .venv/.run ## run the exporter against a simulated Braze; no account, no configuration
	.venv/bin/python -m exporter demo

test: unit servers ## run all tests

unit: .venv/.dev ## run the tests without servers, on every supported Python that is installed
	.venv/bin/python -m pytest -m $(UNIT) -n auto
	@for version in $(OTHERS); do $(MAKE) --no-print-directory unit-$$version || exit 1; done

unit-%: .venvs/%/.dev
	.venvs/$*/bin/python -m pytest -m $(UNIT) -n auto

# Tests with servers wait for most of their time, so there are more of them than cores.
servers: .venv/.dev programs checkers ## run the tests with servers, of which some measure time and run alone, and those with checkers
	.venv/bin/python -m pytest -m "server and not alone" -n 4 --dist loadfile
	.venv/bin/python -m pytest -m alone
	.venv/bin/python -m pytest -m checker -n auto

programs: ## fetch the programs that the tests with servers use
	sh tools/programs.sh

checkers: .venvs/deploy/.done ## install the programs that check the files in deploy

image: .cache/image/image.json ## build the container image into .cache, without a container engine; needs root

dist: .venvs/build/.done ## build the wheel and the source package into dist, as a release does
	rm -rf dist
	.venvs/build/bin/python -m hatchling build

dashboards: .venv/.dev ## write the Grafana dashboards again after a change of grafana/source
	.venv/bin/python -W ignore -m grafana.source.generate

manifests: .venv/.dev ## write the copies of rules and dashboards in deploy again after a change of either
	.venv/bin/python -m tools.manifests

preview: .venv/.dev programs ## draw the dashboards into docs/pictures; needs npm and Chromium
	npm ci --prefix grafana/preview --no-audit --no-fund --loglevel=error
	.venv/bin/python -W ignore -m grafana.preview.preview

check: format-check lint types test ## run everything that CI runs

format-check: .venv/.dev
	.venv/bin/ruff format --check

lint: .venv/.dev ## run the linter
	.venv/bin/ruff check

types: .venv/.dev ## check the types
	.venv/bin/mypy

format: .venv/.dev ## format the code and fix what the linter can fix
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

bench: .venv/.dev programs ## compare scrapes, polls, starts and memory with what else there is; takes ten minutes
	.venv/bin/python -m benchmarks.bench

bench-rules: .venv/.dev programs ## measure what the rules for Prometheus cost over 2,000 campaigns; takes a quarter of an hour
	.venv/bin/python -m benchmarks.rules

bench-dashboards: .venv/.dev programs ## measure how long the dashboards take to open over 2,000 campaigns; takes half an hour
	.venv/bin/python -m benchmarks.dashboards

lock: .venv/.dev ## write the lock files again after a change of the dependencies in pyproject.toml
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --constraints requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group build --constraints requirements-dev.lock --output-file requirements-build.lock
	$(COMPILE) --group deploy --output-file requirements-deploy.lock

upgrade: COMPILE += --upgrade
upgrade: lock ## the same, with the newest version of everything

clean: ## remove everything that make has made
	rm -rf .venv .venvs .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again only when a lock file is newer. The dev lock contains the run-time lock.
.venv/.run: requirements.lock
	sh tools/venv.sh "$(PYTHON)" .venv $<
	@touch $@

.venv/.dev: requirements-dev.lock
	sh tools/venv.sh "$(PYTHON)" .venv $<
	@touch .venv/.run $@

.venvs/%/.dev: requirements-dev.lock
	sh tools/venv.sh "$$(sh tools/python.sh $*)" .venvs/$* $<
	@touch $@
.PRECIOUS: .venvs/%/.dev

# By uv, as pip takes a minute for so many packages.
.venvs/deploy/.done: requirements-deploy.lock | .venv/.dev
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venvs/deploy
	.venv/bin/uv pip install --quiet --python .venvs/deploy --require-hashes --no-deps --requirement $<
	@touch $@

.venvs/build/.done: requirements-build.lock
	sh tools/venv.sh "$(PYTHON)" .venvs/build $<
	@touch $@

.cache/image/image.json: tools/image.sh deploy/docker/Dockerfile .dockerignore pyproject.toml README.md LICENSE \
		requirements.lock requirements-build.lock $(wildcard exporter/*.py) | .venv/.dev
	sh tools/image.sh

OTHERS = $(filter-out $(shell .venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'),$(INSTALLED))
INSTALLED = $(foreach version,$(VERSIONS),$(if $(shell sh tools/python.sh $(version)),$(version)))

# One lock for every supported Python and platform, with hashes and without the name of an index.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version $(firstword $(VERSIONS)) \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
