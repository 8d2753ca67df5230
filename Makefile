# Two commands for newcomers: `make demo` and `make test`. Each sets itself up.
# Pip settings (PIP_CONSTRAINT, PIP_INDEX_URL ...) are taken from the environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# The demo's own picture is a procedural scene that nothing was trained on. For another one:
#     make demo IMAGE=photo.jpg PROMPT="the dog runs to the left" CAMERA="orbit-left dolly-in"
# Where the embedded weights are not in the checkout, it shows what needs none: depth to videos.
IMAGE ?=
PROMPT ?=
CAMERA ?= orbit-left
SEED ?= 900000028
DEMO ?= out/demo
EMBEDDED ?= $(wildcard more4d_backend/tiny/weights/diffusion_models/more4d_tiny_vism.safetensors)
export IMAGE PROMPT

demo: $(VENV)/.headless
ifneq ($(strip $(IMAGE)),)
	@test -n "$$PROMPT" || { echo 'Say what moves, and where to: PROMPT="the dog runs left"'; exit 1; }
	$(GENERATE) "$$IMAGE" --prompt "$$PROMPT"
else ifneq ($(strip $(EMBEDDED)),)
	$(BIN)/python -m training.procedural.demo_picture $(DEMO) --seed $(SEED)
	$(GENERATE) $(DEMO)/photo.png --prompt "$${PROMPT:-$$(cat $(DEMO)/caption.txt)}"
else
	@echo "The embedded weights are not in this checkout, so nothing will move by itself."
	$(BIN)/python -m more4d_backend synthetic --seed 11 --output $(DEMO)
	$(BIN)/python -m more4d_backend render $(DEMO)/photo.png \
	    --depth $(DEMO)/depth.png --intrinsics $(DEMO)/intrinsics.npy \
	    $(CAMERA:%=--camera %) --num-frames 25 --amplitude 0.4 --output $(DEMO)
	$(BIN)/python -m more4d_backend info $(DEMO)/scene.safetensors
endif
	@echo "Look at $(DEMO): $(CAMERA:%=%.mp4) contact-sheet.png scene.safetensors"

GENERATE = $(BIN)/python -m more4d_backend generate --model embedded --device cpu \
    $(CAMERA:%=--camera %) --amplitude 0.15 --paste-known-pixels --feather-px 2 --output $(DEMO)

test: lint
	$(BIN)/python -m pytest -n auto --dist loadgroup

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
