# make demo   installs everything it needs (uv and Lava included) and runs the main job
# make test   installs likewise and runs the default tests (under five minutes on two cores)
# make test-all  the slow ones too; make lint  format, lint, types and import directions
# make test-pythons  installs with Lava on 3.10 and 3.12 and proves exactness there (6 GB each, one after the other)
# make test-wheel    builds the wheel, installs it with plain pip into an empty environment, and runs the demo there
#
# Measured in processor time, which two idle cores share: install 85 s (2.5 GB to download the first time), default
# tests 10 minutes, slow ones 8, each other Python 3, the wheel 3. An import of torch and transformers is 5 to 10 s of it.
# WORKERS=1 runs tests one after the other; ARGS goes to pytest, as in: make test ARGS="-k quantize"

PYTHON ?= python3
VENV := .venv
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin
WORKERS ?= 2
# each worker and what it starts compute on one thread: more would wait for each other, spinning
PYTEST = OMP_NUM_THREADS=1 $(RUN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

# uv installs without bytecode; where Python may write none either, each start compiles torch and transformers anew:
# 10 s of processor time
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-pythons test-wheel lint install clean
demo: install
	$(RUN)/spikebert demo

test: install
	$(PYTEST) -m "not slow" $(ARGS)

test-all: install
	$(PYTEST) $(ARGS)

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
