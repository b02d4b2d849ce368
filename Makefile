# Every target sets up what it needs in .venv; only Python >= 3.11 and, for `reference`, a C++ compiler are required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
REFERENCE := $(VENV)/.reference
TRITONS := $(VENV)/.tritons
TYPES := build/types

.PHONY: demo test test-all lint bench gpu-check reference try-reference clean

demo: $(INSTALLED)
	$(BIN)/mclc-gpu demo --out demo-out

# Two processes; the tests of a file share fixtures and stay in one of them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint try-reference $(TRITONS)
	$(PYTEST) -m "not slow"

test-all: lint try-reference $(TRITONS)
	$(PYTEST)

try-reference: $(INSTALLED)
	@$(MAKE) --no-print-directory reference || echo "pydensecrf did not build: the tests that compare with it are skipped"

# mypy sees the layout of an installed package through links: see [tool.mypy] in pyproject.toml.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/mclc_gpu
	@cd $(TYPES)/mclc_gpu && ln -s ../../../mclc_gpu/* $(addprefix ../../../,$(wildcard kernels networks bench)) .
	cd $(TYPES) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

bench: $(INSTALLED)
	$(BIN)/mclc-gpu bench

# Needs no set-up but PyTorch and numba, scipy and scikit-image in $(PYTHON). ARGS="--images DIR --masks DIR --list TXT": own frames.
gpu-check:
	PYTHONPATH=. $(PYTHON) -m mclc_gpu bench --suite gpu $(ARGS)

reference: $(REFERENCE)

clean:
	rm -rf $(VENV) build dist demo-out bench-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints/test.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mclc-gpu needs Python >= 3.11: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints/test.txt --editable '.[dev]'
	@touch $@

# pip >= 25.3 reads the constraints of a build from PIP_BUILD_CONSTRAINT, older ones from PIP_CONSTRAINT.
$(REFERENCE): $(INSTALLED) constraints/pydensecrf.txt
	CYTHON_FORCE_REGEN=1 PIP_CONSTRAINT=constraints/pydensecrf.txt PIP_BUILD_CONSTRAINT=constraints/pydensecrf.txt \
	  $(PIP) install --quiet --editable '.[reference]'
	@touch $@

# Releases of Triton beside the installed one, only to compile with: each in a folder of its own.
$(TRITONS): $(INSTALLED) constraints/triton.txt
	@for release in $$(grep '^[0-9]' constraints/triton.txt); do \
	  ls -d $(VENV)/lib/python3*/site-packages/triton-$$release.dist-info > /dev/null 2>&1 && continue; \
	  $(PIP) install --quiet --no-deps --upgrade --target $(VENV)/triton/$$release triton==$$release \
	    || echo "Triton $$release did not install: the tests that compile with it are skipped"; \
	done
	@touch $@
