PY          ?= .venv/bin/python
BASE_PYTHON ?= python3
TORCH       ?= torch==2.13.0
SWEEP       ?= default
RUN         ?= results/local/latest
REGRESS      = $(if $(OPTIMIZERS),--optimizers=$(OPTIMIZERS)) $(if $(DIMS),--dims=$(DIMS)) $(if $(THREADS),--threads=$(THREADS))

# a worker a core, of one thread each; more than four would want much memory
WORKERS      = -n auto --maxprocesses 4 --dist worksteal

READY        = $(if $(filter .venv/bin/python,$(PY)),.venv/ready)  # another Python is taken as it is

.DEFAULT_GOAL := help
.PHONY: setup bench bench-quick bench-speed bench-gpu wheels train report publish peers peers-relative peers-growth peers-timer reliability harness regress doctor counts counts-update gate-check test test-slurm test-all lint clean help

.venv/bin/python:
	$(BASE_PYTHON) -m venv $(VENVFLAGS) .venv

.venv/ready: pyproject.toml | .venv/bin/python
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q $(TORCH)
	$(PY) -m pip install -q -e ".[dev]"
	touch $@

setup: .venv/ready  ## Build .venv: torch only where none is importable, this package, the tools

bench: $(READY)  ## Time every optimizer across dims, write the report; goes on where it was interrupted (SWEEP=full)
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) $(SWEEP) $(OVERRIDES)

bench-quick: $(READY)  ## The same in a minute, up to dim 256
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) quick $(OVERRIDES)

train: SWEEP = train
train: $(READY)  ## Tune and train each optimizer alike: likelihood by step and second; 9 minutes on 2 cores (SWEEP=paper)
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) $(SWEEP) $(OVERRIDES)

bench-speed: $(READY)  ## How far from the limit each step is that should come near it
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) speed $(OVERRIDES)

bench-gpu: $(READY)  ## As far as each optimizer goes on a large GPU: memory, energy, TF32, bfloat16, compiled steps (PART=0, PART=list)
	$(PY) -c "import pynvml" 2>/dev/null || $(PY) -m pip install -q -e ".[gpu]"
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) gpu $(if $(PART),part=$(PART)) $(OVERRIDES)

wheels: $(READY)  ## What a Linux machine without a network needs beside torch, for its Python (PYTHON=3.12), into build/wheels
	$(PY) -m pip wheel -q --no-deps -w build/wheels . "antlr4-python3-runtime==4.9.*"  # which has no wheel, and Hydra needs it
	$(PY) -c "import tomllib; found = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*[name for name in \
	  found['dependencies'] + found['optional-dependencies']['gpu'] if not name.startswith('torch')], sep='\n')" > build/wheels/needed.txt
	$(PY) -m pip download -q -r build/wheels/needed.txt --find-links build/wheels -d build/wheels --only-binary=:all: \
	  --python-version $(or $(PYTHON),3.12) $(foreach n,17 24 27 28 31 34,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64

peers: $(READY)  ## Time K-FAC beside other projects' in one run, one thread, the model and batch of their users
	$(PY) -m pip install -q -e ".[peers]"
	OMP_NUM_THREADS=1 $(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) tests/peers/curvature.yaml --config-dir tests/peers $(OVERRIDES)

peers-relative: $(READY)  ## Time the relative gradient beside its authors' notebook and JAX code, in one run
	$(PY) -m pip install -q -e ".[peers]"
	$(PY) -m stepscale.bench sweep $(if $(ANEW),--anew) tests/peers/relative.yaml --config-dir tests/peers $(OVERRIDES)

peers-growth: $(READY)  ## What Extra-P says of a run's times, beside the counted order and our verdict (RUN=…)
	mkdir -p build/typed/stepscale
	ln -sfn ../../../bench ../../../models ../../../optimizers build/typed/stepscale/
	test -d build/extrap || $(PY) -m venv build/extrap  # apart from ours: it wants a NumPy below 2
	build/extrap/bin/pip install -q "extrap==4.*" msgspec psutil scipy tabulate "pandas>=2.2"
	PYTHONPATH=build/typed build/extrap/bin/python -m tests.extra_p $(RUN)

peers-timer: $(READY)  ## How well a factor is known after 20 s, beside torch's Timer; 8 minutes (TARGET=results/timer/factors.csv)
	$(PY) -m tests.peers.timer $(or $(TARGET),results/local/timer/factors.csv)

reliability: $(READY)  ## Kill sweeps and trainings, damage files, misbehave, interrupt, mistype; 50 minutes (TARGET=results/reliability)
	for script in killed_sweeps killed_trainings misbehaving early_interrupt fuzzed_records wrong_inputs; do \
	  $(PY) -m tests.reliability.$$script --to $(or $(TARGET),results/local/reliability)/$$script.csv || exit 1; \
	done

harness: $(READY)  ## What the harness itself costs: first figures, reports of many records; 2 minutes (TARGET=results/harness/harness.csv)
	$(PY) -m tests.harness --to $(or $(TARGET),results/local/harness/harness.csv)

report: $(READY)  ## Write the report of a run anew from its records (RUN=results/NAME)
	$(PY) -m stepscale.bench report $(RUN)

publish: $(READY)  ## Copy a finished run to results/NAME (NAME=…, RUN=…; PARTIAL=1 one that is not)
	$(PY) -m stepscale.bench publish $(if $(PARTIAL),--partial) $(RUN) "$(NAME)"

regress: $(READY)  ## Is a step slower than at BASE (a git ref; where this left main)? OPTIMIZERS=… DIMS=… THREADS=…
	$(PY) -m stepscale.bench regress $(BASE) $(REGRESS)

doctor: $(READY)  ## What difference this machine can resolve, and what disturbs it
	$(PY) -m stepscale.bench doctor

counts: $(READY)  ## What each step costs, free of noise: FLOPs, operations, synchronisations, bytes; and each of many ranks
	$(PY) -m tests.counts
	$(PY) -m tests.world_counts

counts-update: $(READY)  ## Commit to these counts: what make test then expects
	$(PY) -m tests.counts --update
	$(PY) -m tests.world_counts --update

gate-check: $(READY)  ## The regression gate's own quality, into results/gate; 70 minutes on 2 cores, goes on where it was
	$(PY) -m stepscale.bench gate-check

test: lint  ## Lint, types, unit tests, the deterministic cost gate
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not slow and not slurm" $(WORKERS)

test-slurm: $(READY)  ## Sweeps through a Slurm of their own: needs root and Debian's slurmctld slurmd slurm-client munge
	$(PY) -m pip install -q -e ".[cluster]"
	$(PY) -m pytest -q -m slurm tests/slurm

test-all: test  ## The same, what it leaves out, and the numerical tests under each instruction set; 45 minutes on 2 cores
	$(PY) -m tests.settings

# mypy cannot follow an editable mapping, so it is shown the layout through links
lint: $(READY)  ## Format, lint and type checks
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	mkdir -p build/typed/stepscale
	ln -sfn ../../../bench ../../../models ../../../optimizers build/typed/stepscale/
	MYPYPATH=build/typed $(PY) -m mypy -p stepscale
	PYTHONPATH=build/typed $(PY) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
	$(PY) -m tests.shape

clean:  ## Remove the environment and every build product; results stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find bench models optimizers tests -name __pycache__ -exec rm -rf {} +

help:  ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	printf '  %-14s %s\n' "$$name" "$$text"; done
