# Everything that a newcomer needs: `make demo`, `make test`. The first time takes minutes, because
# a Kubernetes control plane, Helm and kubectl are built from source; after that, seconds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

## Tests of the real control plane that run side by side.
TEST_THREADS ?= 4

.PHONY: help
help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: build
build: ## Build the release binary: target/release/claviger.
	cargo build --release --locked

.PHONY: tools
tools: ## Build the control plane, Helm and kubectl that demo and tests use.
	@tests/tools/build.sh

.PHONY: demo
demo: tools ## Show the main job on a control plane of its own; leaves it running.
	@tests/demo/demo.sh up

.PHONY: demo-down
demo-down: ## Stop what `make demo` left running.
	@tests/demo/demo.sh down

.PHONY: test
test: tools ## Run all tests, those against the real control plane included.
	cargo test --locked --lib --bins
	cargo test --locked --test it
	cargo test --locked --test cluster -- --test-threads=$(TEST_THREADS)
	cargo test --locked --doc

.PHONY: soak
soak: tools ## The same with ten times as many kills and property cases.
	PROPTEST_CASES=4096 cargo test --locked --release --lib
	CLAVIGER_CRASH_KILLS=2000 cargo test --locked --test cluster -- --test-threads=$(TEST_THREADS) crash outage

.PHONY: bench
bench: tools ## Measure against a bare client doing the same, and doors against a hello; prints ratios.
	cargo bench --locked --bench vault_envelope
	cargo bench --locked --bench function_keys
	cargo bench --locked --bench vaults
	cargo bench --locked --bench roles
	cargo bench --locked --bench doors

.PHONY: lint
lint: ## Formatting and clippy, as CI runs them.
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: crds
crds: ## Generate the custom resource definitions and their copies in the charts.
	for kind in FunctionKey RoleAssignment SecretVault; do \
	  file=$$(tr '[:upper:]' '[:lower:]' <<< "$$kind")s.claviger.dev.yaml; \
	  cargo run --quiet --locked -- crds --kind "$$kind" > "target/$$file"; \
	  for folder in crds charts/claviger/files/crds charts/claviger-crds/files/crds; do \
	    install -D -m 644 "target/$$file" "$$folder/$$file"; \
	  done; \
	done
