# make book, make lab, make test: all first see to .venv, which is made from requirements.lock and nothing else.
# Every path here is relative, so a checkout may lie in a folder with spaces in its name.

UV := _build/uv/bin/uv

.PHONY: help book lab test lock clean .venv
.DEFAULT_GOAL := help

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(SUITABLE)' 2>/dev/null && echo "$$python" && break; done)
# Are all packages that banlib asks for still there? -I keeps the checkout itself out of the answer.
COMPLETE := import importlib.metadata as m, re; [m.version(re.match("[A-Za-z0-9._-]+", r)[0]) for r in m.requires("banlib")]

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):.*  ## /make \1\t/p' Makefile | expand -t 12

book: .venv  ## train what is missing and render the book to _build/html/index.html
	.venv/bin/banlib book

lab: .venv  ## open JupyterLab on working copies of the chapters, in work/; your edits stay
	.venv/bin/banlib lab $(ARGS)

test: .venv  ## run the tests; make test ARGS="-k lineage" picks some
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 3 --dist worksteal $(ARGS)

lock: $(UV)  ## pin what pyproject.toml asks for; make lock ARGS=--upgrade takes the newest versions
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra test $(ARGS) --output-file requirements.lock pyproject.toml

clean:  ## remove the rendered book and caches; trained runs, data and .venv stay
	rm -rf _build .pytest_cache build dist banlib.egg-info
	find banlib tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A .venv counts when its last step wrote .venv/installed in this very folder (scripts in a .venv hold absolute paths)
# and no package is missing; any other is thrown away and made again.
.venv:
	@test "$$(cat .venv/installed 2>/dev/null)" = "$$(pwd -P)" && test -x .venv/bin/banlib \
		&& .venv/bin/python -I -c '$(COMPLETE)' 2>/dev/null || rm -f .venv/locked
	@$(MAKE) --silent .venv/installed

LOCKED := --require-hashes --requirement requirements.lock

# uv takes a quarter of pip's time; pip knows mirrors and certificates of its own, for where uv gets nothing.
$(UV):
	"$(PYTHON)" -m venv _build/uv
	_build/uv/bin/python -m pip install --quiet uv

.venv/locked: requirements.lock
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { echo "the book needs Python 3.11, 3.12 or 3.13 and found \
	$(if $(PYTHON),only $(PYTHON),none); install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making .venv from requirements.lock (once; a few minutes, about 6.5 GB on Linux)"
	rm -rf .venv
	"$(PYTHON)" -m venv .venv
	{ $(MAKE) --silent $(UV) && $(UV) pip install --python .venv/bin/python $(LOCKED); } \
		|| .venv/bin/python -m pip install --no-compile $(LOCKED)
	touch $@

.venv/installed: .venv/locked pyproject.toml
	.venv/bin/python -m pip install --no-deps --no-build-isolation --editable .
	pwd -P > $@
