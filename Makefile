# vmsup: `make demo` shows it, `make test` proves it, `make install` installs it.

PREFIX ?= /usr/local
DESTDIR ?=
programs := vmsup vmsup-jailer vmsup-worker vmsup-netd
crates := -p vmsup -p jailer -p vmm-worker -p helper-netd
target := $(or $(CARGO_TARGET_DIR),target)
release := $(target)/x86_64-unknown-linux-gnu/release

.PHONY: all deps build guests test-programs demo test bench lint install clean
all: build

## Installs what is missing (as root), or names it.
deps:
	@tests/deps

## The four programs in target/bin, and the bare-metal guests in target/guest.
build: guests
	cargo build --release --locked $(crates)
	@mkdir -p target/bin
	@for program in $(programs); do \
		cmp -s $(release)/$$program target/bin/$$program || install -m 755 $(release)/$$program target/bin/$$program; \
	done
	@ls -l $(addprefix target/bin/,$(programs)) | awk '{ printf "%s  %.1f MiB\n", $$NF, $$5 / 1048576 }'

guests:
	@$(MAKE) --no-print-directory -C tests/guest

## What only tests need, beside the programs.
test-programs: build
	cargo build --release --locked -p vmsup-tests --bins
	@install -m 755 $(release)/vmsup-probe $(release)/vmsup-lease-times target/bin/

## The main job, shown step by step.
demo: deps build
	@tests/demo

## Everything: lints, unit and integration tests, the test host. The last line is the total.
test: deps test-programs
	@tests/all

## First byte, memory, CPU time and leases against the floor and fixed limits.
bench: test-programs
	@tests/bench/run

lint:
	@tests/lint

install: build
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(addprefix target/bin/,$(programs)) $(DESTDIR)$(PREFIX)/bin/
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/vmsup/examples
	target/bin/vmsup man $(DESTDIR)$(PREFIX)/share/man/man1
	target/bin/vmsup completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmsup
	install -m 644 examples/*.json $(DESTDIR)$(PREFIX)/share/vmsup/examples/

clean:
	rm -rf target/bin target/guest target/testhost target/test-logs target/bench
	cargo clean
