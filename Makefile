# Works for a normal user in a fresh clone: everything is installed into .venv, .venvs and .cache.
# `make PYTHON=/path/to/python3` builds .venv with another Python; `make clean` first when there is one already.

PYTHON ?= python3
# The Pythons that the unit tests run on, where they are installed.
VERSIONS := 3.11 3.12 3.13
UNIT := "not server and not checker"
PYTEST := -m pytest -q
# What `make test` and `make check` make, one after the other.
TEST := unit servers
CHECK := format-check lint types $(TEST) alone checkers others
STAGES = MAKE="$(MAKE)" sh tools/stages.sh

.DEFAULT_GOAL := help
.PHONY: help demo test check format-check lint types unit servers alone checkers others programs image dist generate preview format bench bench-rules bench-dashboards soak mutants lock upgrade clean

help: ## list what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: .venv/.run ## run the exporter against a simulated Braze; no account, no configuration
	.venv/bin/python -m exporter demo

test: ## run the tests on one Python, those with servers too, as a proof that it works here; takes six minutes
	+@$(STAGES) $(TEST)

check: ## run everything that CI runs; takes a quarter of an hour
	+@$(STAGES) $(CHECK)

format-check: .venv/.dev ## check the format
	.venv/bin/ruff format --check --quiet

lint: .venv/.dev ## run the linters of code and imports
	.venv/bin/ruff check --quiet
	@imports=$$(.venv/bin/lint-imports --no-cache --no-logo 2>&1) || { echo "$$imports"; exit 1; }

types: .venv/.dev ## check the types
	.venv/bin/mypy --no-error-summary

unit: .venv/.dev ## run the tests without servers
	.venv/bin/python $(PYTEST) -m $(UNIT) -n auto

# They wait for most of their time, so there are more of them than cores.
servers: .venv/.dev programs ## run the tests with servers
	.venv/bin/python $(PYTEST) -m "server and not alone and not checker" -n 4 --dist loadfile

alone: .venv/.dev programs ## run the tests that measure time, one after the other
	.venv/bin/python $(PYTEST) -m alone

checkers: .venv/.dev .venvs/deploy/.done .venvs/mutants/.done programs ## run the tests with programs that check files
	.venv/bin/python $(PYTEST) -m checker -n auto

others: .venv/.dev ## run the tests without servers on each other Python that is supported and installed
	@for version in $(OTHERS); do $(MAKE) --no-print-directory unit-$$version || exit 1; done

unit-%: .venvs/%/.dev
	.venvs/$*/bin/python $(PYTEST) -m $(UNIT) -n auto

programs: ## fetch the programs that the tests with servers use
	@sh tools/programs.sh

image: .cache/image/image.json ## build the container image into .cache, without a container engine; needs root

dist: .venvs/build/.done ## build the wheel and the source package into dist, as a release does
	rm -rf dist
	.venvs/build/bin/python -m hatchling build

generate: .venv/.dev ## write the dashboards, and the copies of dashboards and rules in deploy, after a change of their sources
	.venv/bin/python -W ignore -m grafana.source.generate
	.venv/bin/python -m tools.manifests

preview: .venv/.dev programs ## draw the dashboards into docs/pictures; needs npm and Chromium
	npm ci --prefix grafana/preview --no-audit --no-fund --loglevel=error
	.venv/bin/python -W ignore -m grafana.preview.preview

format: .venv/.dev ## format the code and fix what the linter can fix
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

bench: .venv/.dev programs ## compare scrapes, polls, starts and memory with what else there is; takes ten minutes
	.venv/bin/python -m benchmarks.bench

bench-rules: .venv/.dev programs ## measure what the rules for Prometheus cost over 2,000 campaigns; takes a quarter of an hour
	.venv/bin/python -m benchmarks.rules

bench-dashboards: .venv/.dev programs ## measure how long the dashboards take to open over 2,000 campaigns; takes half an hour
	.venv/bin/python -m benchmarks.dashboards

MINUTES ?= 30
soak: .venv/.dev ## run the exporter among faults, reloads and scrapes for MINUTES, 30 by default, and properties on many examples
	.venv/bin/python $(PYTEST) -m $(UNIT) -n auto --hypothesis-profile=soak tests/braze/test_data_series.py tests/test_metrics.py tests/test_exposition.py
	.venv/bin/python -m benchmarks.soak --minutes=$(MINUTES)

mutants: .venv/.dev .venvs/mutants/.done ## change the package in SAMPLE places of each MODULE, one at a time, and print what no test fails for
	.venv/bin/python -m tools.mutants $(MODULE) $(if $(SAMPLE),--sample=$(SAMPLE)) $(if $(SEED),--seed=$(SEED)) $(if $(JOBS),--jobs=$(JOBS))

lock: .venv/.dev ## write the lock files again after a change of the dependencies in pyproject.toml
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --group dev --constraints requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group build --constraints requirements-dev.lock --output-file requirements-build.lock
	$(COMPILE) --group deploy --output-file requirements-deploy.lock
	$(COMPILE) --group mutants --constraints requirements-dev.lock --output-file requirements-mutants.lock

upgrade: COMPILE += --upgrade
upgrade: lock ## the same, with the newest version of everything

clean: ## remove everything that make has made
	rm -rf .venv .venvs .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again only when a lock file is newer. The dev lock contains the run-time lock.
.venv/.run: requirements.lock
	@sh tools/venv.sh "$(PYTHON)" .venv $<
	@touch $@

.venv/.dev: requirements-dev.lock
	@sh tools/venv.sh "$(PYTHON)" .venv $<
	@touch .venv/.run $@

.venvs/build/.done: requirements-build.lock
	@sh tools/venv.sh "$(PYTHON)" .venvs/build $<
	@touch $@

# By uv, as pip takes a minute for so many packages.
.venvs/deploy/.done .venvs/mutants/.done: .venvs/%/.done: requirements-%.lock | .venv/.dev
	$(call install,.venv/bin/python)

.venvs/%/.dev: requirements-dev.lock | .venv/.dev
	$(call install,"$$(sh tools/python.sh $*)")
.PRECIOUS: .venvs/%/.dev

define install
@echo "Installing $$(grep -c == $<) packages into .venvs/$*: about half a minute, once"
@.venv/bin/uv venv --quiet --clear --python $(1) .venvs/$*
@.venv/bin/uv pip install --quiet --python .venvs/$* --require-hashes --no-deps --requirement $<
@touch $@
endef

.cache/image/image.json: tools/image.sh deploy/docker/Dockerfile .dockerignore pyproject.toml README.md LICENSE \
		requirements.lock requirements-build.lock $(wildcard exporter/*.* exporter/*/*.*) | .venv/.dev
	sh tools/image.sh

OTHERS = $(filter-out $(shell .venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'),$(INSTALLED))
INSTALLED = $(foreach version,$(VERSIONS),$(if $(shell sh tools/python.sh $(version)),$(version)))

# One lock for every supported Python and platform, with hashes and without the name of an index.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version $(firstword $(VERSIONS)) \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
