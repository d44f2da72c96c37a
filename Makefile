# Everything sets itself up: a virtual environment in .venv, made by the first target that needs it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICK ?=
KERNELS ?=
PYTEST_ARGS ?=
# Pinned versions of packages: CI gives .ci/constraints.txt.
CONSTRAINTS ?=
INSTALL = -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: run test lint dist bench experiments interop survive kill fuzz lab supported map blocking guard clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nvmeof needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml
	$(BIN)/python $(INSTALL) -e '.[fast]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python $(INSTALL) -e '.[fast,test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python $(INSTALL) -e '.[fast,test,lint]'
	@touch $@

run: $(VENV)/.run   ## the main job from end to end, in seconds
	@$(BIN)/python -m nvmeof

test: $(VENV)/.test  ## the everyday test suite
	$(BIN)/python -m pytest -n 4 -m 'not timing' $(if $(PYTEST_ARGS),$(PYTEST_ARGS),--all-refusals)
	$(BIN)/python -m pytest -m timing $(PYTEST_ARGS)

lint: $(VENV)/.lint  ## ruff, mypy --strict, the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.dist: $(BIN)/python pyproject.toml
	$(BIN)/python $(INSTALL) 'build>=1.0' 'twine>=5.0'
	@touch $@

dist: $(VENV)/.dist  ## a wheel and an sdist in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

bench: $(VENV)/.test ## benchmarks beside their floors; QUICK=1 for half a minute
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

guard: $(VENV)/.test ## instructions per command beside the stored baseline; needs valgrind and a C compiler
	$(BIN)/python -m benchmarks.instructions

$(VENV)/.plots: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fast,mptcp,plots]'
	@touch $@

experiments: $(VENV)/.plots ## several network paths, rootless; QUICK=1 for what needs no virtual machine, 8 minutes
	$(BIN)/python -m benchmarks.mptcp $(if $(QUICK),--quick)

interop: $(VENV)/.test ## Linux kernels in QEMU against target and host; QUICK=1 for one kernel in short
	$(BIN)/python -m tests.interop $(if $(QUICK),--quick,$(foreach k,$(KERNELS),--kernel $(k)))

survive: $(VENV)/.test ## what can happen to a kernel's target, under the loads of our host and the kernel's
	$(BIN)/python -m tests.interop.survive $(foreach k,$(KERNELS),--kernel $(k))

lab:             ## fetch and build what `make interop` boots (as root, Debian)
	tools/lab/prepare

kill: $(VENV)/.test ## a target killed (SIGKILL) 100 times under a host that checks what it was told; KILLS=
	$(BIN)/python -m tests.crash.killing --kills $(or $(KILLS),100)

fuzz: $(VENV)/.test ## hostile bytes for every parser and server, MINUTES=5 of it; CORPUS= keeps what it finds
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(CORPUS),--corpus $(CORPUS))

.PHONY: constraints audit
constraints:     ## pin what CI installs, in .ci/constraints.txt; PYTHON=python3.11
	PYTHON=$(PYTHON) tools/constraints

$(VENV)/.audit: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7'
	@touch $@

audit: $(VENV)/.audit ## look up the pinned packages for known vulnerabilities; says so where no database is reached
	$(BIN)/python tools/audit.py

map: $(BIN)/python ## draw docs/modules.svg and docs/modules.md from the imports
	$(BIN)/python tools/module_map.py

blocking: $(VENV)/.lint ## write the host's blocking classes from the asyncio ones
	$(BIN)/python tools/blocking_api.py

supported: $(VENV)/.run ## derive docs/supported.md from the code's tables
	$(BIN)/python -m nvmeof.target.supported > docs/supported.md

.PHONY: engines
engines: $(VENV)/.test ## other people's NBD servers and clients, and Ceph, installed (as root, Debian), tested with ours
	@(for program in nbdkit qemu-nbd nbdcopy fio openssl ceph-osd; do command -v $$program >/dev/null || exit 1; done) || \
	  apt-get install -y -qq --no-install-recommends nbdkit qemu-utils libnbd-bin python3-libnbd fio openssl \
	    ceph-mon ceph-osd python3-rbd
	$(BIN)/python -m pytest tests/nbd tests/target/storage/nbd tests/target/storage/rbd tests/host/nbd_export

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
