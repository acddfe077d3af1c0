# make demo   everything, from made-up photographs to a trained network, in about five minutes
# make test   the quick tests;  make test-slow: the long ones;  make lint: flake8, mypy, the tables
# make tables   README's tables, from the measurements in results/
# make pictures   README's pictures, from the demo's folder (needs chromium)
#
# TORCH_INDEX_URL=URL takes torch from another package index (for instance PyTorch's CPU builds);
# EXTRAS=dev leaves NVIDIA DALI out (see README, "CUDA 12").
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
EXTRAS ?= dali,dev
DEMO_DIR ?= demo

PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet
RUN = $(VENV)/bin/python
TEST = $(RUN) -m pytest --numprocesses auto --dist loadfile
INSTALLED = $(VENV)/.installed
INSTALLED_SLOW = $(VENV)/.installed-slow

.PHONY: demo test test-slow lint gpu-check tables pictures clean

demo: $(INSTALLED)
	$(RUN) tools/demo.py $(DEMO_DIR)

test: $(INSTALLED)
	$(TEST) -m "not slow"

test-slow: $(INSTALLED_SLOW)
	$(TEST) -m slow

# make gpu-check RUN=python3 takes the packages that are there, and installs nothing
gpu-check: $(if $(filter command line,$(origin RUN)),,$(INSTALLED))
	$(RUN) tools/gpu_check.py

tables: $(INSTALLED)
	$(RUN) tools/tables.py

pictures: $(INSTALLED)
	$(RUN) tools/draw_pictures.py $(DEMO_DIR)

lint: $(INSTALLED)
	$(RUN) -m flake8
	$(RUN) -m mypy
	$(RUN) tools/tables.py --check

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fullfeed needs Python 3.11 or newer; this is " + \
	    sys.version.split()[0] + ": make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	@echo "Installing into $(VENV): PyTorch, DALI and the rest, a few minutes on the first run ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt \
	    $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --editable ".[$(EXTRAS)]"
	@touch $@

$(INSTALLED_SLOW): $(INSTALLED)
	@echo "Installing what only the long tests need: Ray and an S3 server ..."
	$(PIP) --constraint constraints.txt --editable ".[$(EXTRAS),slow]"
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_DIR)
