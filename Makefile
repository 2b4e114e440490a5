# The developer's whole vocabulary. Everything runs from .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install live test test-faults lint docs bench soak monitoring compose-test fuzz audit clean

help:
	@echo "make live    a whole compressive session on this machine, with the specimen simulator"
	@echo "make test    lint, unit and integration tests"
	@echo "make test-faults  processes killed, hung and cut off, disks full (docs/reliability.md); COUNT times"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make bench   speed as ratios of the same run (docs/performance.md)"
	@echo "make soak    MINUTES=20 of load, changes and kills, with plots and a verdict (docs/reliability.md)"
	@echo "make monitoring  Grafana dashboards and the table of metrics, anew (docs/monitoring.md)"
	@echo "make compose-test  a whole session in containers (docs/operations.md); needs a Docker engine"
	@echo "make audit   what is known against the pinned versions, and their licences (docs/security.md)"
	@echo "make fuzz    COUNT inputs to each decoder and file reader (docs/security.md); TARGETS chooses some"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

install: .venv/installed

live: install
	$(BIN)/cryoflux live --frames 600 --rate 20 --change 300=4 --output output/live --overwrite

# PROCESSES at a time: most tests of processes wait most of their time. TESTS= runs the slow ones too. What fails
# is run once more and told of as run again: hundreds of processes share two cores. test-faults has no such mercy.
PROCESSES ?= 3
TESTS ?= -m 'not slow'
test: install lint
	$(BIN)/python -m pytest tests -n $(PROCESSES) --dist loadfile --reruns 1 -rR $(TESTS)

# COUNT=20 runs each so many times; FAULTS='-m "not slow"' leaves out what waits for half a minute on purpose
TALLY ?= output/faults.md
test-faults: install
	$(BIN)/python -m pytest tests/faults -n $(PROCESSES) --dist worksteal --tally $(TALLY) \
	  --count $(if $(filter file,$(origin COUNT)),1,$(COUNT)) $(FAULTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

bench: install
	$(BIN)/python -m benchmarks

# SOAK='--seed 7' draws other changes and faults; SOAK='--docs docs' puts figures and plots into the documentation
MINUTES ?= 20
soak: install
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(SOAK)

monitoring: install
	$(BIN)/python -m services.monitoring.generate

# COMPOSE_TEST='--without grafana' where that image cannot be had
compose-test:
	$(PYTHON) -m tests.compose $(COMPOSE_TEST)

COUNT ?= 100000
TARGETS ?= messages codec codec-fields mrc tiff star cfx journal archive
fuzz: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	for target in $(TARGETS); do nice $(BIN)/python -m tests.fuzz $$target --runs $(COUNT) || exit; done

# 0: nothing is known against the pinned versions; 3: the database of advisories could not be asked
audit: install
	$(BIN)/python -m tests.audit

clean:
	rm -rf .venv output
