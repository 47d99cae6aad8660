# The two commands of a newcomer: `make demo` and `make test`.
# Everything else is a part of them.

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -ec
GO      ?= go
ifndef VERSION
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
endif
LDFLAGS := -s -w -X main.version=$(VERSION)

# Engines that the lab's tests run with: 20.10, 26.1, 28.5 (Debian 12, 13, forky).
ENGINES ?= 28.5
# Tools of the machine (Debian) that tests need, by the Debian package that has them.
# Engines are never installed on the machine: the lab keeps its own.
TOOLS   := debootstrap:debootstrap nft:nftables ip:iproute2 iptables:iptables sysctl:procps gcc:gcc

# How many inputs each fuzz target gets. Up to Go 1.26 the end of a duration may fail a target: golang/go#75804.
FUZZTIME ?= 10000x
E2ETIMEOUT ?= 60m
# Which e2e tests, as in go test -run; nothing: all. And what make soak runs them with.
RUN ?=
ALLENGINES  := 20.10 26.1 28.5
CORE        := ^(TestDemo|TestNetworkOption|TestNeighbours|TestLocks|TestLabelInTime|TestCrash|TestNothingIsLeft|TestUninstall)$$
SOAKENGINES ?= $(ALLENGINES)

# What docker plugin create makes. The name needs an owner: docs/adr/0012.
PLUGIN ?= eipnet/eipnet:latest
IMAGE  ?= eipnet/eipnet:latest

# Releases: for which architectures, and where a package goes. Debian's versions begin with a digit.
ARCHS ?= amd64 arm64
ARCH  ?= $(shell $(GO) env GOARCH)
DEB   ?= out
DEBVERSION = $(shell echo '$(VERSION)' | sed 's/^v\([0-9]\)/\1/; /^[0-9][0-9]*\./!s/^/0~/')

# Where make install puts things: below $(DESTDIR)$(PREFIX). It installs $(BIN); completion and man page are
# what $(HERE) says, which has to run here.
PREFIX  ?= /usr/local
DESTDIR ?=
BIN     ?= bin/eipnet
HERE    ?= $(BIN)
ZSHDIR  ?= share/zsh/site-functions
ROOT    := $(DESTDIR)$(PREFIX)
UNITS   := eipnet.service eipnet-restore.service
INSTALLED = $(ROOT)/bin/eipnet $(UNITS:%=$(ROOT)/lib/systemd/system/%) \
	$(ROOT)/share/bash-completion/completions/eipnet $(ROOT)/$(ZSHDIR)/_eipnet \
	$(ROOT)/share/fish/vendor_completions.d/eipnet.fish $(ROOT)/share/man/man8/eipnet.8.gz
RELOAD = if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

.PHONY: build demo test unit netns e2e core lint fmt fuzz bench soak golden tools clean install uninstall release deb image rootfs plugin help

help: ## show this
	@awk -F':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/eipnet, static
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/eipnet ./cmd/eipnet

demo: tools build ## two containers, two NICs, two public addresses, on a simulated cloud with a real engine
	$(GO) run ./test/demo -eipnet bin/eipnet -engine $(firstword $(ENGINES))

test: tools unit netns fuzz e2e core lint ## everything; installs what it needs

unit: ## tests that need neither root nor an engine
	$(GO) vet ./...
	$(GO) test -short -race ./...

# Packages that fill the machine, or measure how long something takes, run one by one: -p 1.
netns: tools ## tests with the kernel, in network namespaces of their own (root)
	$(GO) test -p 1 -count=1 ./internal/netnstest ./internal/health ./internal/host ./internal/route ./snat ./nicdial

e2e: tools build ## tests with a real Docker Engine in the simulated cloud (root)
	for engine in $(ENGINES); do \
	  EIPNET_ENGINE=$$engine EIPNET_BIN=$(CURDIR)/bin/eipnet $(GO) test -p 1 -count=1 -timeout $(E2ETIMEOUT) $(if $(RUN),-run '$(RUN)') ./test/...; \
	done

core: tools build ## the core of them with the engines that e2e was not run with
	for engine in $(filter-out $(ENGINES),$(ALLENGINES)); do \
	  $(MAKE) e2e ENGINES=$$engine RUN='$(CORE)'; \
	done

golden: tools build ## rewrite golden files, docs/packet-path.md and docs/bridge-parity.md from what the tests capture
	$(GO) test -count=1 ./snat -update
	EIPNET_ENGINE=$(firstword $(ENGINES)) EIPNET_BIN=$(CURDIR)/bin/eipnet $(GO) test -count=1 -timeout 20m ./test/e2e -run 'TestPacketPathPage|TestBridgeParity' -update

fuzz: ## every fuzz target with $(FUZZTIME) inputs
	@for pkg in $$($(GO) list ./...); do \
	  targets=$$($(GO) test -list '^Fuzz' $$pkg | { grep '^Fuzz' || true; }); \
	  for target in $$targets; do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg; \
	  done; \
	done

bench: ## micro-benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./internal/... ./snat

soak: ## the e2e tests at full size with every engine; writes docs/soak.md
	mkdir -p out && rm -f out/soak
	EIPNET_SOAK=1 $(GO) test -count=1 -timeout 1h -v -run 'TestWalk|TestCrashPoints' ./internal/reconcile
	$(MAKE) e2e ENGINES="$(SOAKENGINES)" E2ETIMEOUT=3h EIPNET_SOAK=1 EIPNET_SOAK_FIGURES=$(CURDIR)/out/soak
	$(GO) run ./test/soak <out/soak >out/soak.md
	$(if $(RUN)$(filter-out $(SOAKENGINES),$(ALLENGINES)),@echo "not all was run: docs/soak.md stays; see out/soak.md",mv out/soak.md docs/soak.md)

lint: ## golangci-lint, pinned in tools/go.mod
	$(GO) mod tidy -diff
	$(GO) tool -modfile=tools/go.mod golangci-lint run

fmt: ## gofumpt and import order
	$(GO) tool -modfile=tools/go.mod golangci-lint fmt

tools: ## install missing tools of the machine from Debian's packages
	@missing=(); for t in $(TOOLS); do command -v "$${t%%:*}" >/dev/null || missing+=("$${t##*:}"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
	  [ "$$(id -u)" = 0 ] || { echo "missing: $${missing[*]}; install them, or run as root"; exit 1; }; \
	  echo "installing: $${missing[*]}"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

install: $(BIN) ## binary, systemd units, completion and man page below $(DESTDIR)$(PREFIX)
	install -d $(sort $(dir $(INSTALLED)))
	install -m 0755 $(BIN) $(ROOT)/bin/eipnet
	for unit in $(UNITS); do \
	  sed 's,/usr/local/,$(PREFIX)/,' packaging/$$unit >$(ROOT)/lib/systemd/system/$$unit; \
	done
	$(HERE) completion bash >$(ROOT)/share/bash-completion/completions/eipnet
	$(HERE) completion zsh >$(ROOT)/$(ZSHDIR)/_eipnet
	$(HERE) completion fish >$(ROOT)/share/fish/vendor_completions.d/eipnet.fish
	$(HERE) man | gzip -9n >$(ROOT)/share/man/man8/eipnet.8.gz
	chmod 0644 $(filter-out %/bin/eipnet,$(INSTALLED))
	$(RELOAD)

uninstall: ## remove what install put there; first `eipnet cleanup`
	rm -f $(INSTALLED)
	$(RELOAD)

bin/eipnet:
	$(MAKE) build

release: build ## out/release: binaries and .deb for $(ARCHS), and their checksums
	rm -rf out/release && mkdir -p out/release
	for arch in $(ARCHS); do \
	  bin=out/release/eipnet-$(VERSION)-linux-$$arch; \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $$bin ./cmd/eipnet; \
	  $(MAKE) deb ARCH=$$arch BIN=$$bin HERE=bin/eipnet DEB=out/release; \
	done
	cd out/release && sha256sum * >SHA256SUMS

deb: $(BIN) ## out/eipnet_*.deb of $(BIN), for $(ARCH)
	rm -rf out/deb
	mkdir -p $(DEB)
	$(MAKE) install DESTDIR=out/deb PREFIX=/usr ZSHDIR=share/zsh/vendor-completions
	install -D -m 0644 packaging/default out/deb/etc/default/eipnet
	DEBVERSION=$(DEBVERSION) ARCH=$(ARCH) $(GO) tool -modfile=tools/nfpm.mod nfpm package -f packaging/nfpm.yaml -p deb -t $(DEB)

image: ## the image $(IMAGE), by the Dockerfile, for docker-compose.example.yml
	docker build -t $(IMAGE) --build-arg VERSION=$(VERSION) .

rootfs: tools build ## out/plugin: what docker plugin create takes, from this machine's iptables and bin/eipnet
	rm -rf out/plugin
	sh plugin/rootfs.sh out/plugin/rootfs
	install -m 0755 bin/eipnet out/plugin/rootfs/usr/local/bin/eipnet
	install -m 0644 plugin/config.json out/plugin/config.json

plugin: rootfs ## the managed plugin $(PLUGIN), disabled, in this machine's Docker
	docker plugin create $(PLUGIN) out/plugin

clean:
	rm -rf bin out
