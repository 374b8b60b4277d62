# vmsup: `make demo` shows it, `make test` proves it, `make install` installs it.

PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
programs := vmsup vmsup-jailer vmsup-worker vmsup-netd
crates := -p vmsup -p jailer -p vmm-worker -p helper-netd
bin := $(or $(VMSUP_BIN),target/bin)
target := $(or $(CARGO_TARGET_DIR),target)
release := $(target)/x86_64-unknown-linux-gnu/release

# What is installed names what is installed: the paths of a checkout, in texts and in their links, become placeholders, and
# those the paths of this installation.
placed := s|](\.\./policies/nft/|](|g; s|](\.\./packaging/\([a-z]*\.toml\))|](\1)|g; \
	s|/usr/local/|@PREFIX@/|g; s|/etc/vmsup/|@SYSCONFDIR@/vmsup/|g; s|/etc/apparmor\.d/|@SYSCONFDIR@/apparmor.d/|g; \
	s|docs/networks\.md|@DATADIR@/vmsup/networks.md|g; s|docs/tenants\.md|@DATADIR@/vmsup/tenants.md|g; \
	s|packaging/netd\.toml|@DATADIR@/vmsup/netd.toml|g; s|packaging/supervisor\.toml|@DATADIR@/vmsup/supervisor.toml|g; \
	s|policies/nft/vmsup\.nft|@DATADIR@/vmsup/vmsup.nft|g; \
	s|packaging/sysctl\.d/|@PREFIX@/lib/sysctl.d/|g; s|packaging/udev/|@PREFIX@/lib/udev/rules.d/|g; \
	s|@BINDIR@|@PREFIX@/bin|g; s|@DATADIR@|@PREFIX@/share|g; \
	s|@PREFIX@|$(PREFIX)|g; s|@SYSCONFDIR@|$(SYSCONFDIR)|g

.PHONY: all deps build guests test-programs trace-build trace demo test bench docs pictures lint install install-files clean
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

## What only tests need, beside the programs: among it a vmsup with faults (supervisor/src/serve/fault.rs) in a folder of its
## own. The last build puts the one without them back where a release is.
test-programs: build
	cargo build --release --locked -p vmsup-tests --bins
	@install -m 755 $(addprefix $(release)/vmsup-,probe lease-times lessee) target/bin/
	cargo build --release --locked $(crates) --features vmsup/faults --bin vmsup
	@install -D -m 755 $(release)/vmsup target/bin/faults/vmsup
	@$(MAKE) --no-print-directory trace-build

## The four programs as a trace build (policies/src/trace/sys.rs), in a folder of their own with what tests run beside them:
## they announce every system call instead of filtering any, and wait for `vmsup policy trace`.
trace-build: build
	cargo build --release --locked $(crates) --bins --features vmsup/trace,vmm-worker/trace,helper-netd/trace
	@mkdir -p target/bin/trace
	@install -m 755 $(addprefix $(release)/,$(programs)) target/bin/trace/
	@cargo build --release --locked --quiet $(crates)

## Records anew which rules the tests need: policies/recorded. As root.
trace: test-programs
	@target/bin/vmsup policy trace --dir policies --fail-on-new --record policies/recorded/x86_64.json -- tests/traced

## The main job, shown step by step.
demo: deps build
	@tests/demo

## Everything: lints, unit and integration tests, the test host. The last line is the total.
test: deps test-programs
	@tests/all

## First byte, memory, CPU time and leases against the floor and fixed limits.
bench: test-programs
	@tests/bench/run

## The tables in SECURITY.md that are made from the policies.
docs:
	VMSUP_WRITE_DOCS=1 cargo test --locked -p vmsup-tests --test docs the_tables_of_security_md_are_those_of_the_policies

## The pictures in docs/pictures, of what `vmsup doctor` and `vmsup top` show.
pictures: build
	@tests/pictures/make

lint:
	@tests/lint

install: build
	@$(MAKE) --no-print-directory install-files

## What is built already, and what goes with it: units and their surroundings below PREFIX, what a host's root edits in
## SYSCONFDIR. A netd.toml or supervisor.toml that is there stays.
install-files:
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin share/man/man1 share/bash-completion/completions share/vmsup/examples/fleet \
		lib/systemd/system lib/systemd/user lib/sysusers.d lib/tmpfiles.d lib/sysctl.d lib/udev/rules.d) \
		$(DESTDIR)$(SYSCONFDIR)/vmsup $(DESTDIR)$(SYSCONFDIR)/apparmor.d
	install -m 755 $(addprefix $(bin)/,$(programs)) $(DESTDIR)$(PREFIX)/bin/
	$(bin)/vmsup man $(DESTDIR)$(PREFIX)/share/man/man1
	$(bin)/vmsup completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmsup
	install -m 644 examples/*.json $(DESTDIR)$(PREFIX)/share/vmsup/examples/
	install -m 644 examples/fleet/*.json $(DESTDIR)$(PREFIX)/share/vmsup/examples/fleet/
	install -m 644 policies/nft/vmsup.nft $(DESTDIR)$(PREFIX)/share/vmsup/
	install -m 755 packaging/subids packaging/free-cgroup $(DESTDIR)$(PREFIX)/share/vmsup/
	@set -e; place() { \
		sed '$(placed)' "$$1" >"$$2/$${1##*/}"; \
		chmod 644 "$$2/$${1##*/}"; echo "$$2/$${1##*/}"; }; \
	for file in docs/networks.md docs/devices.md docs/tenants.md packaging/netd.toml packaging/supervisor.toml \
		packaging/systemd/vmsup-network.conf packaging/systemd/vmsup-slice.conf; do place "$$file" $(DESTDIR)$(PREFIX)/share/vmsup; done; \
	for file in packaging/systemd/system/*; do place "$$file" $(DESTDIR)$(PREFIX)/lib/systemd/system; done; \
	for file in packaging/systemd/user/*; do place "$$file" $(DESTDIR)$(PREFIX)/lib/systemd/user; done; \
	for folder in sysusers.d tmpfiles.d sysctl.d; do \
		for file in packaging/$$folder/*; do place "$$file" $(DESTDIR)$(PREFIX)/lib/$$folder; done; done; \
	for file in packaging/udev/*; do place "$$file" $(DESTDIR)$(PREFIX)/lib/udev/rules.d; done; \
	for file in packaging/apparmor/*; do place "$$file" $(DESTDIR)$(SYSCONFDIR)/apparmor.d; done
	@set -e; for file in netd.toml supervisor.toml; do \
		if [ ! -e $(DESTDIR)$(SYSCONFDIR)/vmsup/$$file ]; then \
			install -m 644 $(DESTDIR)$(PREFIX)/share/vmsup/$$file $(DESTDIR)$(SYSCONFDIR)/vmsup/$$file; fi; done

clean:
	rm -rf target/bin target/guest target/testhost target/test-logs target/bench
	cargo clean
