# Two commands are all: `make repro` (the paper at micro scale) and `make test`; `make check` is the latter's first minute. Each makes
# .venv when it is missing.
# Any shell but make's default one, or macOS's make 3.81 looks for `dvc` and `ruff` in the PATH it was called with, not in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export DVC_NO_ANALYTICS := 1
STORY := 00_playground 01_scoring_paradox 01b_explanations 02_pick_high 03_train_ict 04_train_hp 05_draft_k 06_evaluate 07_figures 08_rivals
APPENDIX := A1_build_microworld A2_score_your_images A3_benchmarks A4_published_data A5_your_own_reward
LAB := tests/test_lab.py tests/test_lab_paper.py tests/test_plan.py

.PHONY: repro check test quick-copies test-story test-appendix test-lab data lab bench study study-keep rivals readme site clean

repro: .venv/ready  ## the paper at micro scale: every figure and table
	dvc pull data.dvc
	dvc repro
	dvc metrics show --md

check: .venv/ready  ## style and the tests that build no model
	ruff check lib tests study docs notebooks
	ruff format --check lib tests study docs
	pytest -q -n 2 -m "not slow" tests

test: .venv/ready  ## style, units, the pipeline in a clone, then each notebook at smoke scale
	rm -rf runs/smoke
	dvc pull data.dvc
	ruff check lib tests study docs notebooks
	ruff format --check lib tests study docs
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_pipeline.py tests \
		$(addprefix --ignore ,$(LAB))  # the longest first
	$(MAKE) --no-print-directory -j 2 test-story test-appendix

quick-copies: .venv/ready
	python tests/quick_copies.py

NBVAL := cd runs/smoke/notebooks && OMP_NUM_THREADS=1 pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 600 -p no:cacheprovider -q

test-story: quick-copies  ## the notebooks of the story at smoke scale, in their order
	$(NBVAL) $(addsuffix .ipynb,$(STORY))

test-appendix: quick-copies  ## the others
	$(NBVAL) $(addsuffix .ipynb,$(APPENDIX))

test-lab: .venv/ready  ## the larger scales' own profiles, from end to end, on tiny models in their publishers' layouts
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile $(LAB)

data: .venv/ready  ## rebuild data/ from nothing: two hours and more on two cores
	python -m icthp.run notebooks/A1_build_microworld.ipynb build_microworld
	dvc add data && rm -rf .dvc/store/files && dvc push -q data.dvc  # the store holds today's data/ alone

lab: .venv/ready  ## the notebooks in JupyterLab
	dvc pull data.dvc
	HF_HUB_OFFLINE=0 jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_playground.ipynb

study: .venv/ready  ## controls and tunings, three seeds each, into study/*.csv: three hours and more on two cores
	dvc pull data.dvc
	dvc repro train_hp strip strip_study
	cd study && dvc repro
	python study/controls.py table
	python study/tuning.py table

study-keep: .venv/ready  ## after a change that cannot touch the study: one row is run again; equal to the last digit, all stay valid
	dvc repro train_hp strip strip_study
	python study/keep.py $(ROW)

rivals: .venv/ready  ## the bench of notebook 08 into study/rivals*: some hours on two cores; it goes on after a kill
	dvc pull data.dvc
	dvc repro train_hp
	for worker in 1 2; do python study/rivals.py search & done; wait
	for worker in 1 2; do python study/rivals.py run & done; wait
	python study/rivals.py time
	for worker in 1 2; do python study/rivals_directions.py & done; wait
	python study/rivals.py table

bench: .venv/ready
	python -m icthp.run notebooks/A3_benchmarks.ipynb bench

readme: .venv/ready  ## README.md from docs/README.md.j2 and the results of `make repro`
	python docs/readme.py

site: .venv/ready  ## these pages, the executed notebooks, the figures and the playground as HTML in site/
	python docs/playground/build.py
	NO_MKDOCS_2_WARNING=1 mkdocs build

clean:  ## forget all results; data/, the cache and .venv stay
	rm -rf runs models figures site study/runs

.venv/ready: requirements.lock pyproject.toml  # .venv/made: venv and pip are whole; what a kill left of them is made anew
	test -e .venv/made || test -e $@ || $(PYTHON) -m venv --clear --upgrade-deps .venv
	touch .venv/made
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@
