# make repro            logs in, champion out: environment, then `dvc repro` with what params.yaml says
# make repro SOURCE=kuairand DATA=path/to/kuairand      the same on real logs (writes both into params.yaml)
# make repro SOURCE=simulated                           back to the simulated source
# make bench-quality    candidate generation beside its alternatives; SOURCE and DATA as above, simulated without them
# make bench-ranking    ranking beside its alternatives, on five rolling days; SOURCE and DATA as above
# make bench-features   how fast ranking features are made, beside the same windows by hand; on an idle machine
# make bench-train      how fast candidate generation trains, beside its alternatives; ten minutes, on an idle machine
# make bench-serve      how fast a server answers over a million videos; ten minutes, on an idle machine
# make bench-index      how fast the nearest of a million embeddings are found, beside faiss and hnswlib; on an idle machine
# make bench-scale      how time, memory and disk grow with the logs, the vocabulary and the workers; an hour, on an idle machine
# make bench-decisions  how often the gate is wrong, and how often it sees what is there, in rounds of known truth
# make cluster-up | cluster-down   a Spark master and two workers on loopback, for engine.kind: spark; needs Java 17
# make serve            the champion on loopback, its user state filled from the pipeline's logs
# make test | check | ui | status | lock | clean

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PEERS_VENV := benchmarks/.venv
SOURCE ?=
DATA ?=
WORK ?=
UI_PORT ?= 5000
SERVE_PORT ?= 8080

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without bytecode every stage would compile its imports again: TensorFlow alone takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPATH :=

.PHONY: repro cluster-up cluster-down bench-decisions bench-features bench-index bench-quality bench-ranking bench-scale bench-serve bench-train serve test check ui status lock clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

# A virtual environment names its own folder in every script: moved or copied with the project, it is made anew.
ifneq ($(shell cat $(VENV)/.folder 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/.installed
endif

$(VENV)/.installed: requirements.lock pyproject.toml
	@test "$$(cat $(VENV)/.folder 2>/dev/null)" = "$(CURDIR)" || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (some minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $(VENV)/.folder
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "installing the test tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@touch $@

repro: $(VENV)/.installed
ifneq ($(SOURCE),)
	@watchnext use-source $(SOURCE) $(if $(DATA),--path "$(DATA)")
else ifneq ($(DATA),)
	$(error DATA is the folder of a source's logs: say which, as in make repro SOURCE=kuairand DATA=$(DATA))
endif
	@dvc repro
	@watchnext status

test: $(VENV)/.installed-dev
	@pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	pytest -q tests/contracts

# The peers of the benchmarks need versions that the project does not, so they have an environment of their own.
ifneq ($(shell cat $(PEERS_VENV)/.folder 2>/dev/null),$(CURDIR))
.PHONY: $(PEERS_VENV)/.installed
endif

$(PEERS_VENV)/.installed: benchmarks/requirements.txt
	@test "$$(cat $(PEERS_VENV)/.folder 2>/dev/null)" = "$(CURDIR)" || $(PYTHON) -m venv --clear $(PEERS_VENV)
	@echo "installing the peers into $(PEERS_VENV) (some minutes, once)" >&2
	@$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	@echo "$(CURDIR)" > $(PEERS_VENV)/.folder
	@touch $@

bench-quality: $(VENV)/.installed $(PEERS_VENV)/.installed
	@python -m benchmarks.quality $(if $(SOURCE),--source $(SOURCE)) $(if $(DATA),--data "$(DATA)")

bench-decisions: $(VENV)/.installed
	@python -m benchmarks.decisions

bench-features: $(VENV)/.installed
	@python -m benchmarks.features

bench-ranking: $(VENV)/.installed $(PEERS_VENV)/.installed
	@python -m benchmarks.ranking $(if $(SOURCE),--source $(SOURCE)) $(if $(DATA),--data "$(DATA)")

# WORK=folder keeps the world that is asked, which takes minutes to make.
bench-serve: $(VENV)/.installed
	@python -m benchmarks.serve $(if $(WORK),--work "$(WORK)")

bench-index: $(VENV)/.installed $(PEERS_VENV)/.installed
	@python -m benchmarks.index $(if $(WORK),--work "$(WORK)")

# Its cluster of Spark comes with the test tools, too.
bench-scale: $(VENV)/.installed-dev
	@python -m benchmarks.scale $(if $(WORK),--work "$(WORK)")

bench-train: $(VENV)/.installed $(PEERS_VENV)/.installed
	@python -m benchmarks.train

# Spark comes with the test tools, as an extra of pyproject.toml that the pipeline itself does without.
cluster-up: $(VENV)/.installed-dev
	@watchnext cluster up

cluster-down: $(VENV)/.installed
	@watchnext cluster down

serve: $(VENV)/.installed
	@watchnext load-events
	@watchnext serve --port $(SERVE_PORT)

ui: $(VENV)/.installed
	@watchnext ui --port $(UI_PORT)

status: $(VENV)/.installed
	@watchnext status

# Names, versions and hashes; no addresses. Run after changing the dependencies in pyproject.toml.
lock: $(VENV)/.installed-dev
	uv pip compile --python-version 3.11 pyproject.toml --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock
	uv pip compile --python-version 3.11 pyproject.toml --extra dev --constraint requirements.lock --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file requirements-dev.lock

clean:
	rm -rf data reports metrics dvc.lock .dvc/tmp
	@echo "mlruns/ (runs and the registry), .dvc/cache and $(VENV) are kept; delete them by hand if you mean it"
