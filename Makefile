# make run    deps, build, real text, compile models/vrl11.golf, train, pack, score, adapt, verify
# make test   the tests (after make deps)
.PHONY: help deps build data run test test-long lint bench clean

help:
	@sed -n 's/^# //p' Makefile

deps:
	@tests/e2e/deps.sh

build: deps
	cargo build --release

data: build
	tests/e2e/text.sh out/text

run: data
	tests/e2e/main_job.sh out

test: deps
	tests/e2e/test.sh

lint:
	cargo fmt --all --check
	cargo clippy --all-targets --workspace -- -D warnings

clean:
	cargo clean
	rm -rf out
