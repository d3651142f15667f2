# make demo    the main job, on this machine, from nothing
# make test    everything, guests included: 'make deps guests' first, done by itself
.PHONY: help deps guests pairs peers test checks test-short test-kernels test-debug lint demo bench bench-peers clean clean-guests

GO ?= go
TOOL = $(GO) tool -modfile=tools/go.mod
export GOFLAGS ?=

help:
	@sed -n 's/^# make/make/p' Makefile
	@echo 'make test-short   unit tests with the race detector, no guests'
	@echo 'make lint         vet, staticcheck, gofumpt, layers'
	@echo 'make test-kernels tests of reading on all kernels: an hour'
	@echo 'make test-debug   DWARF against BTF over a whole kernel; downloads 300 MB'
	@echo 'make guests       build the guest images (cached: $$OVM_CACHE or ~/.cache/ovmigrate)'
	@echo 'make bench-peers  opening and listing, beside drgn and crash; downloads 300 MB'
	@echo 'make deps bench clean clean-guests'

deps:
	@./internal/testvm/deps.sh

# Instant when the images are there: they are named after their recipe.
guests: deps
	@$(GO) run ./internal/testvm/cmd/guest build >/dev/null

# The guests that processes move between.
pairs: deps
	@$(GO) run ./internal/testvm/cmd/guest build bookworm trixie >/dev/null

# Guests are built meanwhile: that is mostly waiting for downloads. Then packages that act on
# guests one at a time, since two of them make a small machine slow, and what only reads.
ACT = ./signal ./checkpoint ./internal/testvm/... ./examples/demo
test: deps
	@$(MAKE) --no-print-directory -j 2 checks guests
	$(GO) test -p 1 -timeout 30m $(ACT)
	$(GO) test -p 2 -timeout 40m $$($(GO) list ./... | grep -vxF "$$($(GO) list $(ACT))")

checks:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-short

# As test, on all kernels that Debian ships: an hour more.
test-kernels: export OVM_KERNELS = all
test-kernels: deps guests
	$(GO) test -p 1 -timeout 120m ./kernel/... ./examples ./examples/ovm

test-short: deps
	$(GO) test -short -race ./...

# Debug information of the guests' own kernel: a download of some 300 MB.
test-debug: deps guests peers
	@./internal/testvm/debugdeb.sh bin/debug
	$(GO) test -count=1 -timeout 30m -v -run 'OfAKernel' ./kernel/types -args -vmlinux $$(ls -t $$PWD/bin/debug/vmlinux-* | head -n 1)
	$(GO) test -count=1 -timeout 30m -v -run 'PeersReadOurs' ./examples/ovm -args -vmlinux $$(ls -t $$PWD/bin/debug/vmlinux-* | head -n 1)
	$(GO) test -count=1 -timeout 30m -v -run 'InPlaceOfBTF' ./kernel -args -vmlinux $$(ls -t $$PWD/bin/debug/vmlinux-* | head -n 1)

lint:
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@out=$$($(TOOL) gofumpt -l $$(git ls-files '*.go')) && \
		if [ -n "$$out" ]; then echo "not formatted (gofumpt -w):" $$out >&2; exit 1; fi
	$(GO) test ./internal/lint

demo: pairs
	@$(GO) run ./examples/demo

bench: pairs
	@$(GO) run ./internal/bench

# drgn and crash, which no other test needs.
peers:
	@{ command -v drgn && command -v crash; } >/dev/null || apt-get install -q -y --no-install-recommends python3-drgn crash

# Beside drgn and crash, which need the debug information of the guest's kernel.
bench-peers: pairs peers
	@./internal/testvm/debugdeb.sh bin/debug
	@$(GO) run ./internal/bench -only 'dumps|many' -vmlinux $$(ls -t $$PWD/bin/debug/vmlinux-* | head -n 1)

clean:
	rm -rf bin

clean-guests:
	$(GO) run ./internal/testvm/cmd/guest clean
