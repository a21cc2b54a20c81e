# Two commands on a fresh machine: `make demo` and `make test`. Needs Python >= 3.11 and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
OPTIMUM = .venv-optimum
TRITON = .venv-triton
MLSERVER = .venv-mlserver
RUN = .venv-run
LOWEST = .venv-lowest
PACKAGES = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
PIP_FLAGS ?=
UV_FLAGS ?=
# The tests of a file run in one process, of so many at once.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: demo test lint docs slow optimum triton mlserver serve-demo gpu-smoke lowest lock clean

demo: $(STAMP)
	$(BIN)/nemo-edge build engines/demo.toml

test: lint
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m benchmarks.tables --check
	$(BIN)/python docs/rooms.py --check
	$(BIN)/python docs/reference.py --check

docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/site

slow: $(STAMP)
	$(PYTEST) -m slow

optimum: $(OPTIMUM)/.installed
	$(BIN)/python -m pytest -m optimum

gpu-smoke: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow" tests/benchmarks/gpu/test_run.py

triton: $(TRITON)/.installed
	$(BIN)/python -m pytest -m triton

mlserver: $(MLSERVER)/.installed
	$(BIN)/python -m pytest -m mlserver

# The readers, after a toy's way from its build to a server's folder, and what is refused of a checkpoint.
lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest tests/model/test_code.py tests/journeys/test_readers.py

# What the tests last ran with, of every platform, as the package index has it.
lock: $(STAMP)
	$(BIN)/python -m pip list --format=freeze --exclude-editable > $(VENV)/installed.txt
	$(BIN)/uv pip compile $(UV_FLAGS) --quiet --universal --python-version 3.11.5 --extra dev --constraint $(VENV)/installed.txt \
	  --generate-hashes --no-annotate --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

serve-demo: demo $(TRITON)/.installed
	$(BIN)/python -m nemo_edge.serving.showcase engines/out/demo --environment $(TRITON)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nemo-edge needs Python 3.11 or newer, e.g. make PYTHON=python3.12 demo")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable '.[dev]'
	touch $(STAMP)

# optimum-onnx needs transformers 4: its environment has that and what goes with it, and sees all else (torch) in $(VENV).
# diffusers: the last with huggingface-hub 0.x, which transformers 4 needs.
$(OPTIMUM)/.installed: $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(OPTIMUM)
	$(BIN)/python $(PACKAGES) > "$$($(OPTIMUM)/bin/python $(PACKAGES))/behind.pth"
	$(BIN)/python -m pip --python $(OPTIMUM)/bin/python install --quiet --no-compile $(PIP_FLAGS) 'optimum-onnx==0.1.0' 'diffusers<0.40'
	touch $@

# A Triton server (2.51) with its Python backend, which needs numpy 1; all else its Python models see in $(VENV).
$(TRITON)/.installed: $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(TRITON)
	$(BIN)/python $(PACKAGES) > "$$($(TRITON)/bin/python $(PACKAGES))/behind.pth"
	echo '$(CURDIR)' >> "$$($(TRITON)/bin/python $(PACKAGES))/behind.pth"
	$(BIN)/python -m pip --python $(TRITON)/bin/python install --quiet --no-compile --no-deps $(PIP_FLAGS) 'nvidia-pytriton==0.7.0' 'numpy<2'
	touch $@

# What draws with a finished bundle and builds none: without PyTorch.
$(RUN)/.installed: $(STAMP)
	$(PYTHON) -m venv --clear $(RUN)
	$(RUN)/bin/python -m pip install --quiet $(PIP_FLAGS) --editable '.[run,openvino]'
	touch $@

# The lowest versions that pyproject.toml allows, but of PyTorch, which is large: that, and what the tests need, they see in $(VENV).
$(LOWEST)/.installed: $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(LOWEST)
	$(BIN)/python $(PACKAGES) > "$$($(LOWEST)/bin/python $(PACKAGES))/behind.pth"
	echo '$(CURDIR)' >> "$$($(LOWEST)/bin/python $(PACKAGES))/behind.pth"
	$(BIN)/uv pip compile $(UV_FLAGS) --quiet --resolution lowest-direct --python $(BIN)/python --extra build --extra serve --extra sign \
	  --no-annotate --no-header pyproject.toml > $(LOWEST)/all.txt
	grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' $(LOWEST)/all.txt > $(LOWEST)/requirements.txt
	$(BIN)/uv pip install $(UV_FLAGS) --quiet --no-deps --python $(LOWEST)/bin/python --requirements $(LOWEST)/requirements.txt
	touch $@

# MLServer, another server of the KServe protocol. It pins FastAPI below what Ray needs; all else it sees in $(VENV).
$(MLSERVER)/.installed: $(STAMP)
	$(BIN)/python -m venv --clear --without-pip $(MLSERVER)
	$(BIN)/python $(PACKAGES) > "$$($(MLSERVER)/bin/python $(PACKAGES))/behind.pth"
	echo '$(CURDIR)' >> "$$($(MLSERVER)/bin/python $(PACKAGES))/behind.pth"
	$(BIN)/python -m pip --python $(MLSERVER)/bin/python install --quiet --no-compile $(PIP_FLAGS) 'mlserver>=1.7'
	touch $@

clean:
	rm -rf $(VENV) $(OPTIMUM) $(TRITON) $(MLSERVER) $(RUN) $(LOWEST) engines/out .mypy_cache .pytest_cache .ruff_cache
