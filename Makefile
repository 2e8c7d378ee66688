# Two commands do all the set-up: `make run` (a command in a real microVM) and `make test`.
# Both can be called again: what is done is not done twice.

SHELL := /bin/bash
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
ALEPH  := target/release/aleph
ONLY   ?=

.PHONY: run test drill bench build install packages check fmt clippy doc deny fuzz fuzz-api clean

run: install
	@$(ALEPH) kernel build
	@$(ALEPH) image build busybox
	$(ALEPH) run --rm busybox -- sh -c 'uname -a; echo hello from $$(hostname)'

# All tests, real VMs included.
test: packages
	@setup/cargo-tool cargo-nextest
	cargo nextest run --workspace --profile $(if $(CI),ci,default)
	cargo test --workspace --doc --quiet

# Kills a daemon under work so many times, and looks what became of its jobs; then changes volumes under load.
ROUNDS ?= 200
drill: packages
	ALEPH_DRILL_ROUNDS=$(ROUNDS) cargo test -p aleph-cli --test drill -- --nocapture
	ALEPH_DRILL_ROUNDS=$(ROUNDS) cargo test -p aleph-executor --test live_volumes -- --nocapture

# Prints a table and writes bench/results.json; ONLY=boot runs one group.
bench: build
	@setup/packages bench
	cargo run --release --quiet -p aleph-bench -- $(ONLY)

build: packages
	cargo build --release -p aleph-cli

install: build
	@install -D -m 0755 $(ALEPH) $(DESTDIR)$(PREFIX)/bin/aleph

packages:
	@setup/packages

# What CI checks before the tests.
check: packages fmt clippy doc deny

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

deny:
	@setup/cargo-tool cargo-deny
	cargo deny --locked check bans licenses sources

# A minute for each fuzz target; SECONDS_EACH=600 for more.
SECONDS_EACH ?= 60
fuzz: packages
	@setup/cargo-tool cargo-fuzz
	@setup/fuzz $(SECONDS_EACH)

# Some 10,000 malformed requests to the API of a node of its own; it takes the tests' image and
# kernel, so `make test` comes first.
fuzz-api: packages
	cargo build -p aleph-cli
	setup/api_fuzz.py "target/debug/aleph up --config"

clean:
	cargo clean
