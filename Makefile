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

# What the product runs on, with what builds it; and what its development needs beside that.
LOCKS := requirements.txt requirements-dev.txt

.PHONY: demo test faults floods soak bench check audit lock sbom schemathesis install debian clean

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

# What the suite asks for a little of, in full: 100,000 reads, 10,000 runs, 500 slow senders for a minute.
floods: install
	FLOODS=1 $(BIN)/pytest tests/acceptance -m flood --override-ini timeout=0 -q -s $(ARGS)

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
	$(VENV)-audit/bin/pip-audit $(LOCKS:%=--requirement %) --no-deps --disable-pip --strict --progress-spinner off

# The hashes of all files that there are of the pinned versions, whatever machine they are for. To move to another
# version, write it into the lock first. It needs the internet, and so does the next one.
lock:
	test -x $(VENV)-lock/bin/python || $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	for lock in $(LOCKS); do \
	  grep -o '^[^ ]*==[^ ]*' $$lock | $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	    --no-deps --generate-hashes --no-header --no-annotate --output-file $$lock - || exit 1; \
	done

# What the product is made of (CycloneDX), as sbom.json.
sbom:
	test -x $(VENV)-sbom/bin/python || $(PYTHON) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	$(VENV)-sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-file sbom.json requirements.txt

install: $(VENV)/installed

# Names, versions and contents are pinned; where they come from is the machine's business.
$(VENV)/installed: $(LOCKS) pyproject.toml clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes $(LOCKS:%=-r %)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	touch $@

# The API document against the server, with so many cases for each operation.
schemathesis: install
	CASES=$(or $(CASES),1000) $(BIN)/pytest tests/acceptance/test_schemathesis.py --override-ini timeout=0 -q -s $(ARGS)

# What some tests need beside Python: two browsers, a Redis 7 next to Valkey, nginx, Caddy and pgbouncer.
debian:
	tests/debian-packages

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-lock $(VENV)-sbom $(VENV)-bench build dist *.egg-info sbom.json
