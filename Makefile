# husk: make help lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Debian's backports put Go beside PATH; any Go since 1.21 fetches the one that
# go.mod names.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go-1.23/bin:/usr/sbin:/sbin
export GOTOOLCHAIN ?= auto
export CGO_ENABLED := 0
# The commit is passed by hand: Go's own stamping fails in a clone owned by
# another user than root.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

PREFIX ?= /usr/local
DESTDIR ?=

VERSION ?= 0.1.0
COMMIT := $(shell git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
# husk and the agent it carries must be of one build: the hash of what the agent
# is made of.
BUILD := $(shell cat go.mod go.sum $$(find agent libcontainer nsfork protocol linux -name '*.go' -o -name '*.s' | LC_ALL=C sort) | sha256sum | cut -c1-16)

# Pinned tools, built by go run from the module proxy.
GOFUMPT := mvdan.cc/gofumpt@v0.12.0
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_TTRPC := github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc@v1.2.10

NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.9.0

GENERATED = $(shell find protocol host -name '*.pb.go')

AGENT := host/bootimage/embedded/agent
KERNEL := build/kernel
# Of the tests, so that the outer machine of the KVM test bed finds the kernel
# unpacked already: unpacking xz twice emulated takes minutes.
export HUSK_CACHE := $(CURDIR)/build/cache
# Two containers boot at a time: an emulated guest keeps one core busy.
PARALLEL ?= 2
RUN ?= .
BATS ?= .
SOFTWARE ?=
# How often make engines does what has to be done many times.
REPEATS ?= 3
FUZZTIME ?= 10s
FUZZ ?= .
# make bench BENCH='start|stdout': start-run, start-exec, start-create, start-cold,
# parallel, memory, many, stdout, files-rootfs, files-volume, 9p, network.
BENCH ?= .
SAMPLES ?= 20
MIB ?= 1024
# Unless bounded, making the first input of interest smaller takes up to a minute,
# all of the budget.
FUZZFLAGS := -fuzzminimizetime 10x
CYCLES ?= 2000
P ?= 8
ALIVE ?= 200
SOAK ?= 30m
LOAD = $(MAKE) --no-print-directory build stock-kernel && go build -trimpath -o build/bin/load ./integration/load && \
	integration/setup/settings.sh $(KERNEL) $(HUSK_CACHE) > build/load.toml && build/bin/load -husk ./husk -config build/load.toml -parallel $(P)
INTEGRATION := go test -tags integration -count=1 -parallel $(PARALLEL) -run '$(value RUN)'

.PHONY: help build agent deps test-deps stock-kernel kernel install-kernel demo test unit race guest integration integration-runc conformance conformance-validation conformance-bats test-kvm test-bed lint vet proto proto-check fuzz vuln faults load soak bench engines software machine release install clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

build: agent ## build husk with its agent (the default)
	go build -trimpath -ldflags "-X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.build=$(BUILD)" -o husk .

agent:
	@command -v go >/dev/null || { echo "go is missing: make deps installs it (as root)" >&2; exit 1; }
	@mkdir -p $(dir $(AGENT))
	go build -trimpath -ldflags "-s -w -X main.build=$(BUILD)" -o $(AGENT) ./agent

deps: ## install the Debian packages that are missing (root)
	@integration/setup/deps.sh run

test-deps:
	@integration/setup/deps.sh run test

stock-kernel: $(KERNEL)/.done ## fetch Debian's stock kernel for tests and demo into build/kernel

# The package is fetched once; make clean forgets it.
$(KERNEL)/.done:
	@integration/setup/kernel.sh $(KERNEL)
	@touch $@

kernel: ## build the trimmed guest kernel, optional, into build/guest-kernel (ten minutes)
	host/bootimage/kernel/build.sh build/guest-kernel

install-kernel: ## install it where husk prefers it to the distribution's
	install -D -m 644 build/guest-kernel/vmlinuz $(DESTDIR)/usr/lib/husk/vmlinuz

demo: deps ## install what is missing, build, and run a container in a VM
	@$(MAKE) --no-print-directory build
	@integration/setup/demo.sh ./husk $(KERNEL)

test: test-deps ## everything: lint, generated code, unit, a little fuzzing, integration under emulation, with runc, and on KVM in the test bed
	@$(MAKE) --no-print-directory build stock-kernel
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory proto-check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory race
	@$(MAKE) --no-print-directory guest
	@$(MAKE) --no-print-directory fuzz FUZZTIME=5s
	@$(MAKE) --no-print-directory integration-runc
	@$(MAKE) --no-print-directory integration
	@$(MAKE) --no-print-directory test-kvm

unit: vet ## format, vet, and the tests that need no VM
	go test ./...

# Static: tests of libcontainer run their own program in a rootfs without libraries.
# The race detector itself needs more memory than TestRlimits leaves.
race: agent ## the same tests with the race detector (gcc)
	CGO_ENABLED=1 go test -race -timeout 10m -skip '^TestRlimits$$' -ldflags '-linkmode external -extldflags "-static -Wl,--no-warnings"' ./...

guest: ## QEMU and a distribution's kernel by themselves, under emulation (root)
	HUSK_TEST_KERNEL=$$(ls $(CURDIR)/$(KERNEL)/boot/vmlinuz-*) HUSK_TEST_MODULES=$$(ls -d $(CURDIR)/$(KERNEL)/lib/modules/*) \
		go test -count=1 -timeout 15m -run '^TestGuest|^TestRealKernel$$' ./hypervisor/qemu ./host/bootimage

vet:
	@unformatted=$$(go run $(GOFUMPT) -l $$(find . -name '*.go' -not -name '*.pb.go' -not -path './build/*')); \
	if [ -n "$$unformatted" ]; then echo "not gofumpt-clean:"; echo "$$unformatted"; exit 1; fi
	go vet -tags integration ./...
	go vet -tags pages .

integration: ## black-box tests of ./husk under emulation (root); RUN=regexp picks
	RUNTIME=$(CURDIR)/husk $(INTEGRATION) -timeout 25m ./integration

integration-runc: ## the same tests against runc: they ask only what runc gives
	RUNTIME=runc $(INTEGRATION) -timeout 10m ./integration

faults: ## kill and stop husk's processes at named points of every verb: all faults (root, half an hour); RUN='TestFaults/pause' picks, FAULTS=n takes n
	RUNTIME=$(CURDIR)/husk FAULTS=$(or $(FAULTS),all) $(subst -run '.',-run 'TestFault',$(INTEGRATION)) -v -timeout 2h ./integration \
		| grep -v '^=== \|^ *--- PASS'

load: ## CYCLES containers made, killed and deleted at P in parallel, then ALIVE at once: nothing may have grown (root, an hour)
	@$(LOAD) -cycles $(CYCLES) -alive $(ALIVE)

soak: ## the same for SOAK (default 30m)
	@$(LOAD) -for $(SOAK) -alive 0

conformance: ## both suites below; fails if one does
	@failed=0; for suite in validation bats; do $(MAKE) --no-print-directory conformance-$$suite || failed=1; done; exit $$failed

conformance-validation: ## the OCI validation suite against husk and runc (root, five minutes); RUN=regexp, SUITE=version or ./checkout
	@integration/setup/deps.sh run test
	@$(MAKE) --no-print-directory build stock-kernel
	@mkdir -p build/bin
	go build -trimpath -o build/bin/conformance ./integration/conformance
	@integration/setup/settings.sh $(KERNEL) $(HUSK_CACHE) > build/conformance.toml
	@# Without a mount namespace, which one test asks for, runc leaves its mounts behind.
	unshare --mount build/bin/conformance -husk ./husk -config build/conformance.toml $(if $(SUITE),-suite $(SUITE)) \
		-only '$(value RUN)' -markdown build/conformance.md -json build/conformance.json

conformance-bats: ## runc's own suite against husk and runc (root, half an hour); BATS=regexp, BATS_SUITE=version or ./checkout
	@integration/setup/deps.sh run test bats
	@$(MAKE) --no-print-directory build stock-kernel
	@mkdir -p build/bin
	go build -trimpath -o build/bin/bats ./integration/conformance/bats
	@integration/setup/settings.sh $(KERNEL) $(HUSK_CACHE) > build/conformance.toml
	build/bin/bats -husk ./husk -config build/conformance.toml $(if $(BATS_SUITE),-suite $(BATS_SUITE)) \
		-only '$(value BATS)' -markdown build/conformance-bats.md

test-kvm: ## the core of them on real KVM and vhost-vsock, in an emulated outer machine
	@[ -n "$$(ls $(HUSK_CACHE) 2>/dev/null)" ] || RUNTIME=$(CURDIR)/husk go test -tags integration -count=1 -run '^TestGuestHasItsOwnKernel$$' ./integration
	@mkdir -p build
	go test -c -tags integration -o build/integration.test ./integration
	go build -trimpath -ldflags "-s -w" -o build/testprog ./integration/testprog
	RUNTIME=$(CURDIR)/husk go test -tags integration -count=1 -v -timeout 25m -run TestKVM ./integration/kvm

test-bed: ## the test bed without husk: when test-kvm fails, is it the bed?
	go test -tags integration -count=1 -v -timeout 10m -run TestBed ./integration/kvm

engines: ## what users type, on real engines, with runc, then husk (root, hours); RUN='TestDocker$/husk/exec' picks, REPEATS=n
	@integration/setup/deps.sh run test engines
	@$(MAKE) --no-print-directory build stock-kernel
	go build -trimpath -ldflags "-s -w" -o build/testprog ./integration/testprog
	@integration/setup/settings.sh $(KERNEL) $(HUSK_CACHE) > build/engines.toml
	RUNTIME=$(CURDIR)/husk HUSK_CONFIG=$(CURDIR)/build/engines.toml TESTPROG=$(CURDIR)/build/testprog OUT=$(CURDIR)/build \
		REPEATS=$(REPEATS) $(INTEGRATION) -timeout 12h ./integration/engines

software: ## nginx, PostgreSQL, Redis, apt, git, Go, Python, Node on Docker, with runc, then husk (root, half an hour); SOFTWARE=husk/nginx picks
	@integration/setup/deps.sh run test engines software
	@integration/setup/software.sh build/software
	@$(MAKE) --no-print-directory engines RUN='TestSoftware/$(value SOFTWARE)'

machine: ## Docker and podman in a Debian 12 with systemd, cgroup v2 and KVM, all emulated (root, a quarter of an hour)
	@integration/setup/deps.sh run test engines software
	@integration/setup/machine.sh build/machine
	@$(MAKE) --no-print-directory engines RUN=TestMachine

bench: ## time husk beside runc, crun and bare QEMU: one table (root, half an hour); BENCH=regexp picks, SAMPLES=n
	@integration/setup/deps.sh run test bench
	@$(MAKE) --no-print-directory build stock-kernel
	@mkdir -p build/bin
	go build -trimpath -o build/bin/bench ./integration/bench
	go build -trimpath -ldflags "-s -w" -o build/testprog ./integration/testprog
	@integration/setup/settings.sh $(KERNEL) $(HUSK_CACHE) > build/bench.toml
	@# Whatever ends it, its mounts end with it. crun takes a hybrid machine whose v2
	@# hierarchy has controllers for a mistake.
	unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$$@"' sh \
		build/bin/bench -husk ./husk -config build/bench.toml -testprog build/testprog -samples $(SAMPLES) -mib $(MIB) \
		-only '$(value BENCH)' -json build/bench.json

lint: agent ## golangci-lint, which the first run builds, in minutes
	go run $(GOLANGCI_LINT) run --build-tags integration ./...

proto: ## regenerate the code made from .proto files
	@integration/setup/deps.sh proto
	@mkdir -p build/bin
	GOBIN=$(CURDIR)/build/bin go install $(PROTOC_GEN_GO)
	GOBIN=$(CURDIR)/build/bin go install $(PROTOC_GEN_GO_TTRPC)
	PATH=$(CURDIR)/build/bin:$$PATH go generate ./protocol ./host/supervisor/control

# The line naming protoc's version may differ between Debian releases; nothing else may.
# The tree stays as it was, and git, which refuses a clone of another user's, is not asked.
proto-check: ## fail if the generated code is not what the .proto files give
	@rm -rf build/proto && mkdir -p build/proto && cp -p --parents $(GENERATED) build/proto
	@$(MAKE) --no-print-directory proto
	@differs=0; for f in $(GENERATED); do \
		diff -u -I '^//[[:space:]]*protoc  *v' build/proto/$$f $$f || differs=1; cp -p build/proto/$$f $$f; \
	done; [ $$differs = 0 ] || { echo "generated code differs from its .proto: run make proto and commit" >&2; exit 1; }

fuzz: agent ## each fuzz target for FUZZTIME (default 10s); FUZZ=regexp picks
	@FUZZ='$(value FUZZ)' integration/setup/fuzz.sh $(FUZZTIME) $(FUZZFLAGS)

vuln: agent ## known vulnerabilities in what husk calls (needs https://vuln.go.dev, and says so when it is out of reach)
	@integration/setup/vuln.sh $(GOVULNCHECK)

release: build ## tarball, .deb, .rpm, SBOM and checksums in build/release
	VERSION=$(VERSION) NFPM=$(NFPM) CYCLONEDX=$(CYCLONEDX) release/release.sh build/release

install: build ## install husk into PREFIX/bin (default /usr/local/bin), with its man page and completions
	install -D -m 0755 husk $(DESTDIR)$(PREFIX)/bin/husk
	@mkdir -p build/pages
	go run -tags pages . build/pages
	install -D -m 0644 build/pages/husk.8 $(DESTDIR)$(PREFIX)/share/man/man8/husk.8
	install -D -m 0644 build/pages/husk.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/husk
	install -D -m 0644 build/pages/_husk $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_husk
	install -D -m 0644 build/pages/husk.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/husk.fish

clean: ## remove what was built and fetched
	rm -rf build husk $(AGENT)
