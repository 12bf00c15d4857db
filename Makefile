# Two commands do everything from a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# How many random seeds every row of the fault matrix gets, and where the results go.
SEEDS ?= 20
RESULTS ?= fault-results.json

# How long the soak takes, with how many viewers, and where its figures go.
MINUTES ?= 30
VIEWERS ?= 1000
SOAK ?= soak-results

.PHONY: demo test faults soak bench check audit schemathesis install debian clean

demo: install
	$(BIN)/relay demo

test: install debian
	$(BIN)/pytest $(ARGS)

# The relay against nginx with nchan and against its limits; QUICK=1 for a short look. In a place of its own, with a
# Python that is compiled as the image's is: by profile, and optimised as a whole. Debian's is; one that was compiled
# on the spot, as pyenv does, is mostly not, and takes up to half as long again for everything.
bench:
	$(MAKE) install VENV=$(VENV)-bench PYTHON=$(or $(shell tests/debian-python),$(PYTHON))
	tests/debian-packages benchmarks
	$(VENV)-bench/bin/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)

faults: install debian
	FAULT_SEEDS=$(SEEDS) FAULT_RESULTS=$(RESULTS) $(BIN)/pytest tests/faults -s $(ARGS)

soak: install
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --viewers $(VIEWERS) --output $(SOAK)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy clients/python/rp_relay_client clients/python/tests

# Known holes in what is pinned. Strict, since a package that could not be asked about counts as sound otherwise.
# In a place of its own, so that the tool is not among what it looks at. It needs the internet.
audit:
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)-audit/bin/pip-audit --requirement requirements.txt --no-deps --disable-pip --strict --progress-spinner off

install: $(VENV)/installed

# Only names and versions are pinned; where they come from is the machine's business.
$(VENV)/installed: requirements.txt pyproject.toml clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e clients/python -e .
	touch $@

# The API document against the server, with so many cases for each operation.
schemathesis: install
	CASES=$(or $(CASES),1000) $(BIN)/pytest tests/acceptance/test_schemathesis.py --override-ini timeout=0 -q -s $(ARGS)

# What some tests need beside Python: two browsers, a Redis 7 next to Valkey, nginx, Caddy and pgbouncer.
debian:
	tests/debian-packages

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-bench build dist *.egg-info
