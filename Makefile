# Lodge. Every target installs what it lacks (Debian packages, Go modules) and
# says what it does. The scripts are the documentation of the details.

SHELL    := /bin/bash
export LODGE_DATA ?= /var/lib/lodge
export LODGE_RUN  ?= /run/lodge
GO       ?= go
EMBEDDED := internal/daemon/embedded
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -buildid="

.PHONY: help build programs up down test test-long bench check fmt install uninstall clean

help: ## say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

build: programs ## build bin/lodge and bin/lodged
	@$(GOBUILD) -o bin/lodge ./cmd/lodge
	@$(GOBUILD) -o bin/lodged ./cmd/lodged
	@echo "built bin/lodge and bin/lodged"

# The small programs that lodged carries inside it.
programs:
	@scripts/deps.sh build
	@internal/launch/helper/build.sh $(EMBEDDED)/lodge-launch
	@internal/engine/uml/door/build.sh $(EMBEDDED)/lodge-door.so
	@internal/engine/qemu/image/build.sh $(EMBEDDED)/lodge-image.so
	@$(GOBUILD) -o $(EMBEDDED)/lodge-keeper ./cmd/lodge-keeper
	@$(GOBUILD) -o $(EMBEDDED)/lodge-agent ./cmd/lodge-agent

up: build ## turn this machine into a Lodge server with three running guests
	@scripts/up.sh

down: ## stop all guests and the daemon; data stays, nothing else does
	@scripts/down.sh

check: programs ## formatting, static checks and the architecture
	@scripts/check.sh

test: build ## all tests, on real guests, in a network of their own
	@scripts/test.sh

test-long: build ## what takes longer than CI has: image builds, density
	@scripts/test.sh long

bench: build ## measure against the kernel floor and the peers; PART=uml for one part
	@scripts/bench.sh $(if $(PART),--only=$(PART))

fmt: ## format all Go files
	@gofmt -w api cmd internal test

install: build ## install the programs, the systemd unit and completion
	@scripts/install.sh

uninstall: ## take back what install did; data stays
	@scripts/uninstall.sh

clean: ## remove what was built
	@rm -rf bin $(EMBEDDED)/lodge-*
