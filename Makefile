# The front door. `make help` explains itself.
STUDY ?= digits
DEVICE ?= cpu
JOBS ?= 2
WORKERS ?= 20
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# One thread a process: two processes of one thread beat one of two.
export OMP_NUM_THREADS := 1
# By its path: make 3.81, which macOS has, does not look for commands in the PATH set here.
SNAKEMAKE = $(BIN)/snakemake $(if $(PROFILE),$(ELSEWHERE),--cores $(JOBS)) --config study=$(STUDY) device=$(DEVICE)
# The name by which the Snakefile knows Slurm's jobs of a study, and their logs.
NAME = $(notdir $(basename $(STUDY)))
RESULTS = $(or $(PRUNING_RESULTS),data/results)/$(NAME)
ELSEWHERE = --workflow-profile profiles/$(PROFILE) $(if $(filter slurm,$(PROFILE)), \
	--slurm-jobname-prefix pruning-$(NAME) --slurm-logdir $(abspath $(RESULTS))/work/slurm)
# Options of one's own, such as a partition or a kind of processor, come last, and win.
SUBMIT = --job-name=pruning-$(NAME)_$(1) --cpus-per-task=1 --mem=3500 --time=12:00:00 \
	--output=$(abspath $(RESULTS))/work/slurm/$(1)-%j.log $(SBATCH)

.DEFAULT_GOAL := help
.PHONY: help install study figures savings status tradeoff report bench readme notebooks lab test test-processors clean

.PHONY: lint docs cluster test-cluster test-networks

help: ## this text
	@echo "make study                 the digits study: trains, then renders every figure"
	@echo "make study STUDY=report    the report's benchmarks on MNIST and CIFAR-10 (times: docs/run-again.md)"
	@echo "make study STUDY=my/own.yaml   a study file of your own (docs/own-data.md)"
	@echo "make study FRESH=1         train again what is trained already"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-17s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Options: STUDY=digits|report|methods|ingredients|lenet|smallest|certified|fashion or a file, JOBS=2 (trainings side by side), DEVICE=cpu|cuda, PYTHON=python3,"
	@echo "PROFILE=slurm, WORKERS=20, SBATCH='--partition=...' (docs/clusters.md)"

install: .venv/installed ## make .venv with the exact versions of requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@test -d .venv || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and \
		"Python 3.11.5 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": name one, as in make PYTHON=python3.12")'
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

study: .venv/installed ## run a study (STUDY=digits) and render its figures; goes on where it was interrupted
ifdef FRESH
	@$(BIN)/python -m pruning fresh $(STUDY)
endif
	@$(SNAKEMAKE)
	@$(BIN)/python -m pruning status $(STUDY)

# The scheduler is Slurm's; the workers share the runs out among themselves, each takes one at a time by its lock.
cluster: .venv/installed ## train a study by WORKERS workers of a Slurm array, then render its figures
	@mkdir -p $(RESULTS)/work/slurm
	@array=$$(sbatch --parsable $(call SUBMIT,workers) --array=1-$(WORKERS) --requeue --wrap \
		"exec $(abspath $(BIN))/python -m pruning work $(STUDY) --device $(DEVICE)") && \
	last=$$(sbatch --parsable $(call SUBMIT,figures) --dependency=afterany:$${array%%;*} --wrap \
		"exec $(abspath $(BIN))/snakemake --cores 1 --config study=$(STUDY) device=$(DEVICE)") && \
	echo "Slurm's jobs $${array%%;*} ($(WORKERS) workers) and $${last%%;*} (what they leave, tables, figures)." \
		"See: squeue --me; make status STUDY=$(STUDY); $(RESULTS)/work/slurm/"

figures: .venv/installed ## render a study's figures from its records, training nothing (a minute or two)
	@$(SNAKEMAKE) train=no --until figures --forcerun 2-significant-synapses 3-training-effort \
		$(if $(shell grep -E 'methods:.*adaptive(,|])' $(filter %.yaml %.yml,$(wildcard $(STUDY) studies/$(STUDY).yaml))),5-prune-control) \
		$(if $(wildcard data/results/$(notdir $(basename $(STUDY)))/storage.csv),6-memory-and-energy 7-deploy) \
		$(if $(filter report,$(NAME)),9-conclusions)

savings: .venv/installed ## bytes and energy of a study's delivered models, which must be there
	@$(BIN)/python -m pruning savings tables $(STUDY)

status: .venv/installed ## how far a study is
	@$(BIN)/python -m pruning status $(STUDY)

tradeoff: .venv/installed ## measure accuracy at fixed compression ratios (studies/tradeoff.yaml); goes on where it was interrupted
ifdef FRESH
	@$(BIN)/python -m pruning fresh tradeoff
endif
	@$(BIN)/python -m pruning tradeoff --jobs $(JOBS) --device $(DEVICE)
	@$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/8-tradeoff.ipynb

report: .venv/installed ## put the whole story into one page, build/report.html (runs the notebooks)
	@$(BIN)/python -m pruning report

bench: .venv/installed ## measure training speed side by side (on a quiet machine)
	@$(BIN)/python -m benchmarks.training --device $(DEVICE)

readme: .venv/installed ## put the tables and claims made from the records into README.md and docs/results.md
	@$(BIN)/python -m pruning readme report
	@$(BIN)/python -m pruning savings readme report

notebooks: .venv/installed ## execute the notebooks in place, with their own defaults
	@$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

lab: .venv/installed ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

# Every notebook runs once: in JupyterLab by tests/test_lab.py where Chromium is, else by nbval. Where coverage is
# measured (COVERAGE=--cov) nbval comes after it, for measured kernels start too slowly.
CHROMIUM = $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
NBVAL = $(if $(CHROMIUM),,notebooks) data/results/report/notebooks
test: .venv/installed ## the tests of the package and of every notebook
	@$(BIN)/python -m pytest $(COVERAGE) tests pruning $(if $(COVERAGE),,$(NBVAL))
	@$(if $(COVERAGE),$(BIN)/python -m pytest $(NBVAL))

# PyTorch and the compiled convolution as this processor does them, confined to AVX2, to SSE, and without the convolution.
test-processors: .venv/installed ## the tests that depend on arithmetic, as this and other processors round
	@$(BIN)/python -m pytest -m arithmetic
ifeq ($(shell uname -m),x86_64)
	@ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 PRUNING_KERNEL=x86-64-v3 $(BIN)/python -m pytest -m arithmetic
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 PRUNING_KERNEL=x86-64-v2 $(BIN)/python -m pytest -m arithmetic
endif
	@PRUNING_KERNEL=off $(BIN)/python -m pytest -m arithmetic

test-cluster: .venv/installed ## a study on a real Slurm of two nodes, brought up on this machine (root, Debian's packages)
	@command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null || { \
		echo "Slurm is not installed here: apt-get update && apt-get install --no-install-recommends slurm-wlm munge"; exit 1; }
	@PRUNING_TEST_SLURM=1 $(BIN)/python -m pytest -n 0 tests/cluster

# Ten minutes of one core of an AMD EPYC (Zen 4); `make test` prunes each network by some methods of each kind.
test-networks: .venv/installed ## every method on each of the networks of docs/networks.md
	@PRUNING_TEST_NETWORKS=all $(BIN)/python -m pytest tests/networks/test_known_networks.py

lint: .venv/installed ## style, types and the contract on imports, changing nothing
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

docs: .venv/installed ## docs/methods.md from METHODS, and the API's pages from the docstrings: build/docs/index.html
	@$(BIN)/python docs/build.py

clean: ## remove the environment and scratch files; data and results stay, also those that no table has published
	rm -rf .venv .snakemake .pytest_cache .ruff_cache *.egg-info build
	find data/results -mindepth 3 -maxdepth 3 -path '*/work/*' ! -name '*.json' -exec rm -rf {} +
