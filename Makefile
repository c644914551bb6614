# Two commands do all the set-up: `make demo` and `make test`. Both first make .venv with everything in it.
# Needs git, make, Python 3.11 (with venv) and a C compiler; `make env PYTHON=/path/to/python3.11` names another one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUT ?= outputs/demo
# Options of `make retrain`: two hours of one core. On a GPU, minutes:
# RETRAIN="--device cuda --workers 14 --pairs 384 --hours 0.15 --pool-scenes 20000 --first-scenes 300 --photographs DIR"
RETRAIN ?= --hours 2 --pairs 12 --pool-scenes 1500 --first-scenes 96
BIN := .venv/bin

# Python's compiled files halve the start-up of every later command; a machine-wide ban on them is not wanted here.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env demo test retrain lint clean

env: .venv/.installed

.venv/.installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 10), (3, 11)) else f"found Python {v[0]}.{v[1]} at {sys.executable}; accepted: 3.10 or 3.11; what to do: make env PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	UV_PROJECT_ENVIRONMENT=.venv $(BIN)/uv sync --frozen --inexact --extra dev --quiet
	touch $@

demo: env
	$(BIN)/ns-lora3d demo --output $(OUT)

# One thread a worker. The allocator keeps what is freed: fresh pages are slow on virtual machines (lora3d_splat/memory.py).
test: export OMP_NUM_THREADS := 1
test: export MALLOC_MMAP_MAX_ := 0
test: export MALLOC_TRIM_THRESHOLD_ := 2147483647
test: export MALLOC_TOP_PAD_ := 67108864
test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

# Goes on from the file that the package ships (resumed in runs/compact where it was broken off), then half of the way
# towards the result.
retrain: env
	$(BIN)/ns-lora3d pretrain --initial lora3d_splat/networks/compact.safetensors --seed 10 --texture-sets 4 --motion 0.1 1.6 \
	  --muon-rate 0.002 --adam-rate 0.0007 $(RETRAIN)
	$(BIN)/python -m lora3d_splat.pretraining.average lora3d_splat/networks/compact.safetensors \
	  runs/compact/compact.safetensors 0.5 runs/compact/averaged.safetensors

lint: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

clean:
	rm -rf .venv build *.egg-info outputs
