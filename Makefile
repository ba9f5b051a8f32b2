# One command each; all of them set up what a fresh Debian or Ubuntu lacks.
#   make check   formats, lints, documents, dependency rules; `make check` and `make test` are what CI runs
#   make test    every test; needs root or sudo for Docker
#   make demo    boots a node on the simulator; HOLD=1 keeps it up until Enter, RELEASE=1.17.1 takes another release
#   make demo DIFY=real    the same with Dify's own images, from docker.io or from DIFY_MIRROR=PREFIX
#   make bench   boot times beside docker-compose, memory at rest (RECORD=1: into docs/)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

target := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
debug := target/$(target)/debug
setup := scripts/setup
# The agent is a root program: it speaks to Docker and sets packet filters.
sudo := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$$PATH")
with_docker := $(setup)/with-docker.sh
# Fleets side by side: bound by two cores, not by memory.
THREADS ?= 2
TESTS ?=
# Boots of each contender in each state; factor on the start-up times of Dify's images.
ROUNDS ?= 3
SCALE ?= 0.2
RECORD ?=

.PHONY: help setup fmt check build test unit e2e demo bench soak clean-bed

help:
	@sed -n 's/^#  *\(make .*\)/  \1/p' Makefile

setup:
	@$(setup)/all.sh

fmt:
	cargo fmt --all

check:
	@$(setup)/rust.sh
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p tests --test e2e --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet
	if [ -x scripts/check.sh ]; then scripts/check.sh; fi
	dirty=$$(git status --porcelain); if [ -n "$$dirty" ]; then echo "the work tree is not clean:"; echo "$$dirty"; exit 1; fi

build: setup
	cargo build --workspace --bins --locked

test: unit e2e

# Some of these speak to Docker, PostgreSQL and Redis, too.
unit: build
	if cargo nextest --version >/dev/null 2>&1; then \
	    cargo nextest run --workspace --locked --no-run && \
	    $(sudo) $(with_docker) cargo nextest run --workspace --locked; \
	else \
	    cargo test --workspace --locked --no-run --quiet && \
	    $(sudo) $(with_docker) cargo test --workspace --locked --quiet; \
	fi
	cargo test --workspace --locked --doc --quiet

e2e: build
	cargo test -p tests --test e2e --locked --no-run --quiet
	CARGO_TARGET_DIR=$${CARGO_TARGET_DIR:-$(CURDIR)/target} \
	$(sudo) $(with_docker) $(debug)/bed run -- scripts/setup/e2e.sh --test-threads=$(THREADS) $(TESTS)

demo: build
	$(if $(filter-out real,$(DIFY)),$(error DIFY is '$(DIFY)': expected 'real' or nothing))
	@$(sudo) $(with_docker) $(debug)/bed run -- $(debug)/demo $(if $(DIFY),--real) \
	    $(if $(DIFY_MIRROR),--mirror '$(DIFY_MIRROR)') $(if $(RELEASE),--release '$(RELEASE)') $(if $(HOLD),--hold)

# What is measured is built for release; the bed around it need not be.
bench:
	@$(setup)/all.sh docker-compose
	cargo build -p tests -p standin --bins --locked
	cargo build -p dify-agent -p dify-edge --locked --release
	mkdir -p target/bench/bin
	cp -f $(addprefix $(debug)/,bed bench standin) $(addprefix target/$(target)/release/,dify-agent dify-edge) target/bench/bin/
	$(sudo) $(with_docker) target/bench/bin/bed run -- target/bench/bin/bench --rounds=$(ROUNDS) --scale=$(SCALE) $(if $(RECORD),--record)

soak: build
	cargo test -p tests --test e2e --locked --no-run --quiet
	DIFY_FLEET_SOAK=1 $(sudo) $(with_docker) $(debug)/bed run -- scripts/setup/e2e.sh --test-threads=1 $(TESTS)

clean-bed:
	if [ -x $(debug)/bed ]; then $(sudo) $(debug)/bed clean; fi
	$(sudo) rm -rf target/bed
