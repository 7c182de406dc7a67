# make demo   installs everything it needs (uv and Lava included) and runs the main job
# make test   installs likewise and runs the default tests (under five minutes on two cores)
# make test-all  the slow ones too; make lint  format, lint, types and import directions
# make test-pythons  installs with Lava on 3.10 and 3.12 and proves exactness there (6 GB each, one after the other)
# make test-wheel    builds the wheel, installs it with plain pip into an empty environment, and runs the demo there

PYTHON ?= python3
VENV := .venv
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin
# tests run in as many processes as there are cores, four at most, each with one thread: torch's own would only wait for
# each other
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)
TESTS := OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-all test-pythons test-wheel lint install clean
demo: install
	$(RUN)/spikebert demo

test: install
	$(TESTS) -m "not slow"

test-all: install
	$(TESTS)

test-pythons: | $(UV)
	.ci/test-pythons

test-wheel: install
	.ci/test-wheel

lint: install
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml .python-version | $(UV)
	$(UV) sync --upgrade --extra lava
	@touch $@

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv

# where uv is on PATH its file is there already and nothing has to be done for it
ifneq ($(UV),.tools/bin/uv)
$(UV):
endif

clean:
	rm -rf $(VENV) .venv-* .tools results runs
