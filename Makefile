# Two commands for newcomers: `make demo` and `make test`. Each sets itself up.
# Pip settings (PIP_CONSTRAINT, PIP_INDEX_URL ...) are taken from the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.headless
	$(BIN)/python -m more4d_backend synthetic --seed 11 --output out/demo
	$(BIN)/python -m more4d_backend render out/demo/photo.png \
	    --depth out/demo/depth.png --intrinsics out/demo/intrinsics.npy \
	    --camera orbit-left --camera dolly-zoom --num-frames 25 --amplitude 0.4 --output out/demo
	$(BIN)/python -m more4d_backend info out/demo/scene.safetensors
	@echo "Look at out/demo: orbit-left.mp4, dolly-zoom.mp4, contact-sheet.png, scene.safetensors"

test: lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; set PYTHON=python3.12, for example."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "On Debian: apt install python3-venv"; exit 1; }

$(VENV)/.headless: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[headless]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.headless

clean:
	rm -rf $(VENV) out build *.egg-info
