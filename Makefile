# Run `make` to see what there is.
.DEFAULT_GOAL := help

BIN     := $(CURDIR)/bin
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# How long `make fuzz` looks at each target, and how often `make bench` measures.
FUZZTIME  ?= 10s
BENCHTIME ?= 20x

# A program with the race detector sleeps a second at its end, unless told not to, and
# many tests run programs (GORACE, go.dev/doc/articles/race_detector).
export GORACE ?= atexit_sleep_ms=0

# Extra flags for `make test`, such as -run=TestX.
TESTFLAGS ?=

TOOLS := $(BIN)/golangci-lint $(BIN)/gofumpt $(BIN)/govulncheck

.PHONY: help
help: ## Show this help.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 10

.PHONY: deps
deps:
	@hack/deps.sh

.PHONY: build
build: ## Build the static binaries bin/rawblock-csi and bin/rawblockctl.
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $(BIN)/ ./cmd/...

.PHONY: test
test: deps ## Run the tests, as root: they use real devices, mounts and containers.
	@$(MAKE) --no-print-directory --jobs=3 test-devices test-race test-files

# Packages whose tests have files and no devices.
FILES := ./pkg/signature

# Packages whose tests do one thing after the other: the race detector would see nothing
# more, and they would take two to ten times as long. The tests AT_ONCE, of the packages
# MIXED, run with it all the same.
DEVICES := ./cmd/rawblockctl ./pkg/gpt ./pkg/luks ./test/hotplug ./test/sanity
MIXED   := ./cmd/rawblockctl ./test/hotplug
AT_ONCE := ^Test(Race|OneProcessChangesANode)$$

# Packages of which all tests have targets of their own.
OTHERS := ./test/vm ./test/attack ./test/systemd

# What is no test of concurrency is built as `make build` builds the plugin, whose
# packages are compiled then. Vet is one of the linters (`make lint`).
PLAIN := CGO_ENABLED=0 go test -trimpath -vet=off -count=1

# One package after the other: they share the machine's loop devices, and a test that
# takes one away must not see it given to another. The next ones are built meanwhile, and
# wait for the lock, which is part of the time that go test prints for them, and of its limit.
IN_TURN := -p 3 -timeout=30m -exec='flock -o $(BIN)/devices.lock'

.PHONY: test-devices
test-devices:
	@mkdir -p $(BIN)
	$(PLAIN) $(IN_TURN) -skip='$(RUNTIMES)' $(TESTFLAGS) $(DEVICES)

.PHONY: test-race
test-race:
	@mkdir -p $(BIN)
	go test -race -vet=off -count=1 $(IN_TURN) -skip='$(RUNTIMES)' $(TESTFLAGS) \
		$$(go list ./... | grep -vE $(patsubst .%,-e '%(/|$$)',$(OTHERS)) $(patsubst .%,-e '%$$',$(FILES) $(DEVICES)))
	go test -race -vet=off -count=1 $(IN_TURN) $(TESTFLAGS) -skip='$(RUNTIMES)' -run='$(AT_ONCE)' $(MIXED)

.PHONY: test-files
test-files:
	$(PLAIN) $(TESTFLAGS) $(FILES)
	$(PLAIN) -tags crashpoints $(TESTFLAGS) ./pkg/crashpoint
	cd deploy && $(PLAIN) $(TESTFLAGS) ./...
	cd deploy/monitoring && $(PLAIN) $(TESTFLAGS) ./...
	cd hack/cluster && $(PLAIN) $(TESTFLAGS) ./...

# Tests with targets of their own: those that start a whole container runtime, systemd
# or machine, the doctor's many patients, and attacks.
RUNTIMES := ^Test(CRI|Systemd|VM|Doctor|Attack)

.PHONY: runtimes
runtimes: deps ## Attach devices to pods of a real containerd, and to units of a real systemd. As root.
	go test -race -count=1 -p 1 -run='^Test(CRI|Systemd)' $(TESTFLAGS) ./test/hotplug ./test/systemd

.PHONY: attack
attack: deps ## Play an attacker on real devices and containers. As root.
	go test -race -count=1 -p 1 -run='^TestAttack' $(TESTFLAGS) ./test/attack

.PHONY: doctor
doctor: deps ## Plant each leftover that rawblockctl doctor knows, and see it found and mended. As root.
	$(PLAIN) -timeout=20m -run='^TestDoctor' $(TESTFLAGS) ./cmd/rawblockctl

.PHONY: test-vm
test-vm: deps ## Run the tests that need real disks, in guest machines. As root.
	$(PLAIN) -timeout=60m -parallel=4 $(TESTFLAGS) ./test/vm

# What each landing shows of the guests and of the cluster; `make periodic` runs all of
# them. Chosen is what nothing else has and what broke most often: a disk that is pulled
# out at each step of a volume's life, names that change places over a reboot, whether a
# disk is free, encryption end to end, systemd's device programs, and the attacks.
# Left out is the same contract on more buses, hung disks, and crashes in a guest, whose
# counterparts on loop devices (`make test`, `make crash`) every landing runs.
GATE_GUESTS  := ^TestVM(Attack|Machine|Removal|Identity|DisksThatChangePlaces|Encryption|HotAttachSystemd)
# Of the cluster: the life of a claim as users know it, growth and snapshots, a pod that
# is deleted by force or while kubelet is down, a reboot, an attachment, the tutorial.
GATE_CLUSTER := ^Test(DataOutlivesPod|VolumeGrowsInUse|ReadOnlyUse|ReadWriteOncePod|PodDeletedByForce|PodDeletedWhileKubeletIsDown|NodeRebooted|SnapshotIsRestored|VolumeForDisk|AttachmentPod|AttachmentOutlivesPlugin|Tutorial)$$

.PHONY: gate-guests
gate-guests:
	$(PLAIN) -timeout=30m -parallel=4 -run='$(GATE_GUESTS)' $(TESTFLAGS) ./test/vm

.PHONY: gate-cluster
# The sidecars with Kubernetes' libraries: on a new machine they are half an hour of compiling.
gate-cluster: export RAWBLOCK_SHARED_LIBRARIES := 1
gate-cluster:
	@test/e2e/run.sh -run='$(GATE_CLUSTER)' $(TESTFLAGS)

.PHONY: gate-left-out
# By name what each landing does not show.
gate-left-out:
	@echo "- of the guests: $$(grep -ohE '^func TestVM\w+' test/vm/*_test.go | cut -c6- | grep -vE '$(GATE_GUESTS)' | sort | paste -sd' ')"
	@echo "- of the cluster: $$(grep -ohE '^func Test\w+' test/e2e/*_test.go | cut -c6- | grep -vE '$(GATE_CLUSTER)|^TestMain$$' | sort | paste -sd' ')"

.PHONY: periodic
periodic: deps ## Run every suite whole, the long ones too, and print one summary. As root.
	@hack/periodic.sh

.PHONY: failure-modes
failure-modes: deps ## Inject each failure in a guest machine, and write what is seen to docs/explanation. As root.
	go test ./test/vm -count=1 -timeout=20m -run='^TestVMFailureModes$$' -update

.PHONY: crash
crash: deps ## Kill the plugin after each of its steps, and see that it recovers. As root.
	$(PLAIN) -tags crash -p 1 -timeout=20m -run=Killed $(TESTFLAGS) ./pkg/pool/disk ./test/pools ./test/hotplug

.PHONY: demo
demo: deps build ## Give a disk to a real container, and explain each step. As root.
	@hack/demo.sh

.PHONY: demo-hotplug
demo-hotplug: deps build ## Give a disk to a container that runs already, and take it away. As root.
	@hack/demo.sh -hotplug

.PHONY: cluster-up
cluster-up: ## Start a Kubernetes cluster with the plugin in it, on this machine. As root.
	@hack/cluster/deps.sh
	cd hack/cluster && go run . up

.PHONY: cluster-down
cluster-down: ## Take the cluster down. Nothing of it is left.
	cd hack/cluster && go run . down

.PHONY: e2e
e2e: ## Start the cluster, run the tests of test/e2e in it, and take it down. As root.
	@test/e2e/run.sh $(TESTFLAGS)

.PHONY: e2e-external
e2e-external: cluster-up ## Run Kubernetes' own tests of volumes in the cluster. As root.
	test/e2e/external/run.sh

.PHONY: bench
bench: deps ## Measure the calls, and I/O, beside peers that do less. As root.
	go test ./test/bench -run='^$$' -bench=. -benchtime=$(BENCHTIME)

.PHONY: bench-vm
bench-vm: deps ## Measure what each kind of pool costs, beside each other, in a guest machine. As root.
	go test ./test/vm -run='^$$' -bench=VMPools -benchtime=1x -timeout=30m

.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZTIME each.
	hack/fuzz.sh $(FUZZTIME)

.PHONY: lint
lint: $(TOOLS) ## Run the linters.
	$(BIN)/golangci-lint run ./...
	cd deploy && $(BIN)/golangci-lint run --config ../.golangci.yml ./...
	cd deploy/monitoring && $(BIN)/golangci-lint run --config ../../.golangci.yml ./...
	cd hack/cluster && $(BIN)/golangci-lint run --config ../../.golangci.yml ./...
	cd hack/image && $(BIN)/golangci-lint run --config ../../.golangci.yml ./...
	cd hack/diagrams && $(BIN)/golangci-lint run --config ../../.golangci.yml ./...
	cd test/e2e && $(BIN)/golangci-lint run --config ../../.golangci.yml ./...

.PHONY: fmt
fmt: $(TOOLS) ## Format the code.
	$(BIN)/gofumpt -w cmd pkg test hack deploy

.PHONY: verify
verify: lint ## Check all that CI checks beside the tests.
	@out=$$($(BIN)/gofumpt -l cmd pkg test hack deploy); [ -z "$$out" ] || { echo "Not formatted, run make fmt: $$out"; exit 1; }
	go mod tidy -diff
	cd deploy && go mod tidy -diff
	cd deploy/monitoring && go mod tidy -diff
	cd hack/cluster && go mod tidy -diff
	cd hack/image && go mod tidy -diff
	cd hack/diagrams && go mod tidy -diff
	cd test/e2e && go mod tidy -diff
	cd hack/tools && go mod tidy -diff
	hack/check-walls.sh $(BIN)/golangci-lint
	hack/vulncheck.sh $(BIN)/govulncheck
	cd hack/diagrams && go run . -check
	cd hack/image && go test -count=1 ./...

.PHONY: image
image: ## Build the container image and its bill of materials in dist/, the same ones for the same commit.
	rm -rf dist
	cd hack/image && go run . -version $(VERSION) -o ../../dist

.PHONY: diagrams
diagrams: ## Draw the pictures of the documentation from their sources.
	cd hack/diagrams && go run .

.PHONY: clean
clean: ## Remove what was built.
	rm -rf $(BIN) dist

$(TOOLS): hack/tools/go.mod
	cd hack/tools && GOBIN=$(BIN) go install tool
	@touch $(TOOLS)
