# qpcd: end-to-end encrypted messaging for the home network.
# `make help` is the menu.

GO      ?= go
VERSION ?= $(shell cat VERSION)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUF         := $(GO) tool -modfile=$(CURDIR)/tools/buf/go.mod buf
STATICCHECK := $(GO) tool -modfile=tools/staticcheck/go.mod staticcheck
# One fuzz target's time in `make fuzz`.
FUZZTIME ?= 10s

.PHONY: help build test check bench fuzz cross demo generate setup clean

help: ## show this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/qpcd and bin/qpc for this machine, static
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o bin/ ./cmd/qpcd ./cmd/qpc

demo: build ## start a server and let two people chat, in seconds
	@sh scripts/demo.sh

# QPC_ARCHES=all make test runs the server on every architecture, not on four.
test: setup check ## set up what is missing, then run every check and test
	$(GO) test -race -timeout 20m ./...
	$(GO) test -timeout 10m ./pkg/opaque
	$(GO) test -tags sqlite_ncruces -timeout 10m ./pkg/store ./pkg/service/delivery ./pkg/client/localstore

setup: ## install what the tests use and this machine lacks
	@sh scripts/setup.sh

check: ## gofmt, vet, staticcheck, shellcheck, generated files, tidy modules
	@sh scripts/check.sh

generate: ## make the generated files anew
	cd protos && $(BUF) generate
	$(GO) generate ./...

bench: build ## measure, and write the table of docs/performance.md
	$(GO) run ./internal/bench

fuzz: ## run every fuzz target for FUZZTIME each
	@sh scripts/fuzz.sh $(FUZZTIME)

cross: ## build both programs for every architecture, into dist/
	@sh scripts/cross/build.sh

clean: ## remove what was built
	rm -rf bin dist
