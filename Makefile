# `make repro` runs the pipeline, `make recipe` puts a complete parameter file in place, `make target` adds a device to
# measure on, `make test` runs the tests, `make ablation` a study, `make bench` measures our own speed, `make torture`
# kills runs at random moments. All set everything up first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the stages' commands in dvc.yaml say `python`: this puts the environment's first
export PATH := $(CURDIR)/$(BIN):$(PATH)

# a study of `make ablation`, how many of its runs go at the same time, and where: local | slurm
STUDY ?= ablations/digits.yaml
JOBS ?= 2
EXECUTOR ?= local
# what each run asks Slurm for, for example --partition gpu --minutes 120 --gpus-per-run 1 --cpus-per-run 8
SLURM ?=
# arguments of `make bench`, for example --images FOLDER --out docs/results/bench; --help lists them
BENCH ?=
# of `make torture`, for example --moments 50 --seed 1 --out docs/results/torture
TORTURE ?=
# arguments of `make fuzz`, for example --cases 1000 --only image; all targets take about three hours
FUZZ ?= --cases 10000
# of `make target`: the example in targets/examples/ that the new device begins with
LIKE ?= raspberry_pi

.PHONY: repro recipe target test ablation bench torture fuzz lint clean setup
.DEFAULT_GOAL := repro

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]' --constraint constraints.txt
	touch $@

repro: setup
	python -m stages.check
	dvc repro

recipe: setup
	python -m stages.recipe -- "$$NAME"

target: setup
	python -m stages.target --like '$(LIKE)' -- "$$NAME" "$$HOST"

ablation: setup
	python -m stages.ablation $(STUDY) --jobs $(JOBS) --executor $(EXECUTOR) $(SLURM)

bench: setup
	python -m bench $(BENCH)

torture: setup
	python -m tests.torture $(TORTURE)

fuzz: setup
	python -m tests.fuzz $(FUZZ)

test: setup lint
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	ruff check .
	ruff format --check .
	mypy

clean:
	rm -rf artifacts reports .checkpoints .ablations
