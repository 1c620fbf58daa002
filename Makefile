# make run    deps, build, real text, compile models/vrl11.golf, train, pack, score, adapt, verify
# make test   the tests (after make deps)
# make test-long   what takes minutes: GPU kernels in more orders on the emulator, and how many wrong ones it notices
# make gpu-pack   a folder for a machine with a GPU (out/gpu); make gpu-check runs it there
.PHONY: help deps build data run test test-long lint bench clean gpu-pack gpu-check

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

test-long: deps
	cargo test -p golf-compiler --lib whole_survey -- --ignored --nocapture --test-threads 1
	cargo test -p golf-compiler --test trials -- --ignored --nocapture

gpu-pack: build
	tests/gpu/pack.sh out/gpu

gpu-check:
	out/gpu/check.sh

lint:
	cargo fmt --all --check
	cargo clippy --all-targets --workspace -- -D warnings

clean:
	cargo clean
	rm -rf out
