# `make` alone lists the targets. Everything happens inside .venv; nothing outside this folder is changed.
#   PYTHON=python3.12   the interpreter that makes .venv (3.11 or newer)
#   LAB_FLAGS=...       passed on to JupyterLab

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SETUP  := PYTHON="$(PYTHON)" VENV="$(VENV)" .ci/setup

# One thread: results of training then do not depend on the number of cores, and busy machines stay usable.
QUIET  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 LOWBIT_NB_THREADS=1
PYTEST := $(QUIET) $(BIN)/python -m pytest
NBVAL  := -p tests.nbval_plugin --nbval-lax --nbval-current-env --nbval-cell-timeout=180 \
          --nbval-sanitize-with tests/nbval_sanitize.cfg

# The browser tests need Chromium or Chrome; LOWBIT_NB_CHROMIUM names one that is not on PATH.
CHROMIUM := $(or $(LOWBIT_NB_CHROMIUM),$(shell command -v chromium || command -v chromium-browser || \
                 command -v google-chrome || command -v google-chrome-stable))
comma    := ,
EXTRAS   := test$(comma)kernels$(comma)export$(comma)pages$(comma)class$(if $(CHROMIUM),$(comma)browser)
# JupyterLab refuses to start as root unless told; containers usually are root.
ROOT     := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help lab test notebooks html class clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

lab: ## set up what is missing and open JupyterLab on the first notebook
	@$(SETUP)
	$(BIN)/python -m jupyterlab $(ROOT) $(LAB_FLAGS) notebooks/00_start_here.ipynb

# Notebooks run beside the package's tests, one core each; what they print comes last. Both runs happen even if one fails,
# so that one call shows everything. pytest itself fails (status 5) when it collects nothing.
test: ## set up what is missing and run all tests: the package's, then every notebook
	@$(SETUP) $(EXTRAS)
	@test -n "$(CHROMIUM)" || echo "*** NO BROWSER TESTS: Chromium or Chrome is not on PATH (Debian: apt-get install chromium) ***"
	@status=0; log=$$(mktemp); \
	$(PYTEST) $(NBVAL) notebooks/ > $$log 2>&1 & notebooks=$$!; \
	LOWBIT_NB_CHROMIUM="$(CHROMIUM)" $(PYTEST) tests || status=1; \
	wait $$notebooks || status=1; \
	cat $$log; rm -f $$log; \
	exit $$status

notebooks: ## weave and run every notebook from the top and store it in its normal form
	@$(SETUP) test
	$(BIN)/python tests/weave.py notebooks/*.ipynb
	$(QUIET) $(BIN)/python tests/normalise.py --execute notebooks/*.ipynb
	$(QUIET) $(BIN)/python -m lowbit_nb.classroom --pages

html: ## write the notebooks as pages into html/, to be read and explored without Python or a network
	@$(SETUP) pages
	$(QUIET) $(BIN)/python -m lowbit_nb.pages

class: ## write class/: every notebook for students and for teachers, and nbgrader's settings
	@$(SETUP) class
	$(QUIET) $(BIN)/python -m lowbit_nb.classroom

clean: ## remove .venv and caches (your runs/ and class/ stay)
	rm -rf $(VENV) build dist html *.egg-info .pytest_cache .ruff_cache .hypothesis tests/artifacts
	find lowbit_nb notebooks tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
