# Everything happens in .venv. Needs make and Python 3.11 or newer, as root or not.

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install run test check lint secrets sbom audit bench soak drill test-gcp lock secrets-known clean FORCE

install: $(INSTALLED)

run: install
	@exec $(BIN)/convergence serve

test: install
	$(BIN)/pytest -n 4 -m "not soak and not gcp"

check: lint secrets sbom audit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

# A text that looks like a key or a password, in any file that is kept, and that nobody has looked at.
SCANNED = git ls-files -z -- . ':!*.lock' ':!.secrets.baseline'
secrets: install
	@mkdir -p build
	@$(SCANNED) > build/scanned && test -s build/scanned || { echo "No list of files: is this a git checkout?" >&2; exit 1; }
	@xargs -0 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline < build/scanned

# Says that everything found now has been looked at and is no secret. The change of the file is what a review looks at.
secrets-known: install
	@$(BIN)/detect-secrets scan --no-verify --slim --exclude-files '\.lock$$|^\.secrets\.baseline$$' > .secrets.baseline

# What runs in production, as CycloneDX, for whoever watches over what is deployed: build/sbom.cdx.json.
sbom: install
	@mkdir -p build
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file build/sbom.cdx.json requirements.lock

# Known vulnerabilities of what runs in production. Asks PyPI: without an answer for each package it fails.
audit: install
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --requirement requirements.lock

# Prints one JSON object. The yardstick that benchmarks measure against is installed for them only.
bench: install
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --require-hashes -r requirements-bench.lock
	$(BIN)/python -m tests.benchmarks

# The long crash runs: hundreds of killed processes, hours of load.
soak: install
	$(BIN)/pytest -m soak --timeout 0

# Backs up a server and restores it elsewhere, by pg_dump and by export and import, and prints what is alike.
drill: install
	@$(BIN)/python -m tests.drill

# The suites that have a twin in the cloud, against a real project.
test-gcp: install
	@if [ -n "$$GCP_PROJECT_ID" ]; then $(BIN)/pytest -m gcp; else echo "skipped: no project"; fi

# Locks the newest versions that pyproject.toml allows when UPGRADE=1, otherwise only what it newly asks for.
LOCK = build/uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate $(if $(UPGRADE),--upgrade)
lock:
	@$(find_python); rm -rf build/uv; "$$python" -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra dev --output-file requirements-dev.lock
	$(LOCK) --extra dev --extra bench --constraint requirements-dev.lock --output-file requirements-bench.lock
	rm -rf build/uv

# The data directory (var) stays.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on PATH need not be a Python that runs (pyenv leaves such shims), nor one that can make environments.
define find_python
python=; \
for candidate in python3 python3.13 python3.12 python3.11; do \
	if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		python=$$candidate; break; \
	fi; \
done; \
if [ -z "$$python" ]; then \
	echo "Python 3.11 or newer with its venv module is needed, and none was found on PATH." >&2; exit 1; \
fi
endef

# The stamp holds the directory that was installed: an environment does not survive being moved or copied, nor the
# removal of the Python it was made from.
INSTALLED_HERE := $(shell $(BIN)/python -c "" 2>/dev/null && cat $(INSTALLED) 2>/dev/null)
ifneq ($(INSTALLED_HERE),$(CURDIR))
$(INSTALLED): FORCE
endif

$(INSTALLED): requirements-dev.lock pyproject.toml
	@if [ "$(INSTALLED_HERE)" != "$(CURDIR)" ]; then \
		$(find_python); echo "Making .venv with $$("$$python" --version)"; rm -rf .venv; "$$python" -m venv .venv; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps --no-build-isolation -e .
	@printf '%s\n' "$(CURDIR)" > $(INSTALLED)
