# Everything a fresh machine with Python 3.11 or later needs: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
GPU_VENV ?= .venv-gpu
LOWEST_VENV ?= .venv-lowest
REPORT_VENV = $(if $(shell command -v nvidia-smi),$(GPU_VENV),$(VENV))
RESULTS ?= demo-results
DEMO_PICTURE ?= $(RESULTS)/demo.jpg
CONSTRAINTS = .ci/constraints.txt
LOWEST = cpu openvino train export accuracy heic serve triton cluster s3
comma = ,
empty =
space = $(empty) $(empty)
INSTALL = -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: help demo test test-lowest stress check format models train-gpu test-gpu gpu-report report dist clean

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

demo: $(DEMO_VENV)/ready  ## Run the built-in model on pictures and a video, without torch
	$(DEMO_VENV)/bin/basnet-run export/basnet_export/pictures --kind cutout --output $(RESULTS)/pictures --overwrite
	$(DEMO_VENV)/bin/basnet-run tests/data/pan.mp4 --kind overlay --output $(RESULTS)/pan.overlay.mp4 --overwrite
	$(DEMO_VENV)/bin/python docs/pictures.py demo $(DEMO_PICTURE)
	@echo "Results: $(RESULTS)/pictures (cut-outs as PNG), $(RESULTS)/pan.overlay.mp4 and $(DEMO_PICTURE)"

test: $(VENV)/ready  ## Run all tests that this machine can run
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

stress: $(VENV)/ready  ## Run the stress tests at full length: a soak, kills, damaged headers, odd files (BASNET_DATA)
	BASNET_STRESS=1 $(VENV)/bin/python -m pytest tests/stress -m stress -rP

test-lowest: $(LOWEST_VENV)/ready  ## Run the tests of runtime and export with the oldest versions that pyproject.toml allows
	$(LOWEST_VENV)/bin/python -m pytest tests/runtime tests/export --numprocesses auto --dist loadfile

check: $(VENV)/ready  ## Format, lint, types, import layers
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/ready  ## Rewrite files to the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

models: $(VENV)/ready  ## Write the built-in model's files: make models CKPT=best.pth CALIBRATION=DUTS-TR
	PYTHON=$(VENV)/bin/python bash export/builtin_model.sh "$(CKPT)" "$(CALIBRATION)" "$(PICTURES)"

train-gpu: $(REPORT_VENV)/ready  ## Train the built-in network on a CUDA device: make train-gpu DATA=DUTS-TR VAL=DUTS-TE MINUTES=8
	PYTHON=$(REPORT_VENV)/bin/python bash basnet_torch/train_gpu.sh "$(DATA)" "$(VAL)"

test-gpu: $(GPU_VENV)/ready  ## Run the tests that need a CUDA device; fails where there is none
	BASNET_REQUIRE_GPU=1 $(GPU_VENV)/bin/python -m pytest -m gpu

gpu-report: $(REPORT_VENV)/ready  ## Measure latency and parity on every backend here; GPU rows read "not proven" without one
	PYTHON=$(REPORT_VENV)/bin/python bash benchmarks/gpu_report.sh

report: $(VENV)/ready  ## Measure on the CPU what docs/results.md shows, and write its tables anew (see benchmarks/cpu_report.sh)
	PYTHON=$(VENV)/bin/python bash benchmarks/cpu_report.sh

dist: $(VENV)/ready  ## Build the wheel into dist/
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## Remove environments and build leftovers
	rm -rf $(VENV) $(DEMO_VENV) $(GPU_VENV) $(LOWEST_VENV) dist build

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --editable '.[dev]'
	@touch $@

$(DEMO_VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(INSTALL) --editable '.[cpu,openvino]'
	@touch $@

$(LOWEST_VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST_VENV)/bin/uv pip compile --quiet --resolution lowest-direct $(LOWEST:%=--extra %) \
		--output-file $(LOWEST_VENV)/lowest.txt pyproject.toml
	$(LOWEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(LOWEST_VENV)/lowest.txt --editable '.[$(subst $(space),$(comma),$(LOWEST))]' \
		flask flask-cors httpx hypothesis moto pillow psutil pytest pytest-xdist pyyaml scikit-image scipy 'tritonclient[http]'
	@touch $@

# The two flavors of ONNX Runtime overwrite each other: the CPU's goes before the GPU's comes
$(GPU_VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python $(INSTALL) --editable '.[dev]'
	$(GPU_VENV)/bin/python -m pip uninstall --quiet --yes onnxruntime
	$(GPU_VENV)/bin/python $(INSTALL) onnxruntime-gpu
	@touch $@
