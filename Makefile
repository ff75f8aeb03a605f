# Targets: build test critest demo lint torture clean. Everything that runs pods needs root; hack/as-root asks sudo where it
# must. What is downloaded or built for tests only is kept in .cache/.

VERSION  := $(shell hack/version)
CACHE    := .cache
CRITOOLS := 1.36.0
VARS     := -X main.version=$(VERSION)
STATIC   := -s -w -linkmode external -extldflags -static
TESTDIGEST := 9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf

.PHONY: faults test-faults soak torture-tools fuzz test-node test-kubelet all build deps assets tools critest-tools test critest demo lint torture bench bench-pull bench-peers bench-engine clean

all: build

# cri-server links libseccomp, hence cgo; both are static, so that they run on any distribution and in any root.
build: deps
	CGO_ENABLED=1 go build -trimpath -tags osusergo,netgo -ldflags '$(VARS) $(STATIC)' -o bin/cri-server ./cmd/cri-server
	CGO_ENABLED=0 go build -trimpath -ldflags '$(VARS) -s -w' -o bin/cri-monitor ./cmd/cri-monitor

# The same with fault points, for the tests that let them die at each step; see pkg/faultpoint.
FAULTS := $(CACHE)/faults
faults: deps
	CGO_ENABLED=1 go build -trimpath -tags osusergo,netgo,faultpoints -ldflags '$(VARS) $(STATIC)' -o $(FAULTS)/cri-server ./cmd/cri-server
	CGO_ENABLED=0 go build -trimpath -tags faultpoints -ldflags '$(VARS) -s -w' -o $(FAULTS)/cri-monitor ./cmd/cri-monitor

deps:
	@hack/install-deps

# What the test images are made of.
assets: $(CACHE)/images/applets $(CACHE)/images/testbox $(CACHE)/debs/done

$(CACHE)/debs/done: test/tools/fetch-debs
	test/tools/fetch-debs $(CACHE)/debs

$(CACHE)/images/applets: test/images/fetch-busybox
	test/images/fetch-busybox $(CACHE)/images

$(CACHE)/images/testbox: test/images/testbox/main.go
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./test/images/testbox

tools: deps assets
	go build -o bin/ ./test/testnode/cmd/testnode ./test/testnode/cmd/leaks ./test/tally ./test/images/cmd/registry

# critest and crictl have a module of their own, so that their dependencies don't become cri-server's.
CRILD := -ldflags '-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRITOOLS)'

bin/crictl: test/critest/go.mod test/critest/go.sum
	cd test/critest && CGO_ENABLED=0 go build -trimpath $(CRILD) -o ../../$@ sigs.k8s.io/cri-tools/cmd/crictl

$(CACHE)/critest: test/critest/go.mod test/critest/go.sum
	cd test/critest && CGO_ENABLED=0 go test -c -trimpath $(CRILD) -o ../../$@ sigs.k8s.io/cri-tools/cmd/critest

bin/ginkgo: test/critest/go.mod test/critest/go.sum
	cd test/critest && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../$@ github.com/onsi/ginkgo/v2/ginkgo

# One spec pulls an image by a digest that only its builder can make: put in the digest of ours.
critest-tools: tools bin/crictl $(CACHE)/critest $(if $(PARALLEL),bin/ginkgo)
	cd test/critest && CGO_ENABLED=0 go build -o ../../bin/critest-report ./report
	digest=$$(bin/registry -digest k8s-staging-cri-tools/test-image-digest:latest) && \
	  LC_ALL=C sed "s/$(TESTDIGEST)/$${digest#sha256:}/g" $(CACHE)/critest > bin/critest.new
	chmod +x bin/critest.new && mv bin/critest.new bin/critest

test: build faults tools bin/crictl
	@hack/test

critest: build critest-tools
	@hack/critest

demo: build tools
	@go build -o bin/demo ./test/demo
	@hack/as-root bin/demo

# In a node with systemd as pid 1: both cgroup drivers, the walk, critest with the systemd driver.
test-node: build critest-tools
	@hack/node-test

# In an emulated machine with systemd and cgroup v2: both cgroup drivers, what depends on the kernel's version, critest.
.PHONY: test-vm
test-vm: build critest-tools $(if $(filter kill,$(STEPS)),faults)
	@hack/vm-test

# A real kubelet with static pods. Its first build takes some 10 minutes.
test-kubelet: build tools $(CACHE)/kubelet
	go build -o bin/kubelet-test ./test/kubelet
	@hack/kubelet-test

$(CACHE)/kubelet: test/kubelet/kubelet/go.mod test/kubelet/kubelet/go.sum test/kubelet/kubelet/main.go
	cd test/kubelet/kubelet && CGO_ENABLED=0 go build -trimpath \
	  -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3' -o ../../../$@ .

.PHONY: test-cluster kubelet-times
# A cluster of one node, with kubectl. What is Kubernetes takes some 10 minutes to build the first time, and 2.4 GB.
test-cluster: build tools bin/crictl $(CACHE)/kubelet $(CACHE)/kubernetes
	go build -o bin/cluster-test ./test/cluster
	@hack/cluster-test

$(CACHE)/kubernetes: test/cluster/kubernetes/go.mod test/cluster/kubernetes/go.sum test/cluster/kubernetes/main.go
	cd test/cluster/kubernetes && CGO_ENABLED=0 nice go build -trimpath \
	  -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3' -o ../../../$@ .

# Times to the first pod and to ten more, beside containerd.
kubelet-times: build tools bench-peers $(CACHE)/kubelet
	go build -o bin/kubelet-test ./test/kubelet
	@hack/kubelet-times

lint:
	@hack/lint

# Every fuzz target for TIME (10m), PARALLEL (3) at once: well over an hour.
fuzz: deps
	@hack/fuzz

# Pods at work while their runtime is killed, and a checker that looks for itself: SEED= repeats a run, DURATION=10m or KILLS=
# end it. FLAGS=-unit runs cri-monitor as a unit with a descriptor store. docs/reliability.md tells more.
torture: build faults torture-tools
	@hack/as-root bin/torture -faults -seed $(or $(SEED),0) -for $(or $(DURATION),$(if $(KILLS),24h,1m)) -kills $(or $(KILLS),0) $(FLAGS)

# Pods cycled at full speed: does anything grow? DURATION=1h.
soak: build torture-tools
	@hack/as-root bin/soak -for $(or $(DURATION),10m)

torture-tools: assets
	CGO_ENABLED=0 go build -trimpath -o bin/ ./test/torture ./test/torture/writer ./test/torture/soak ./test/torture/stall

# Every fault point of a pod's life: cri-server and cri-monitor are killed there, and each error comes from there. It fails if
# there is a point that was not hit.
HITS := $(CURDIR)/$(CACHE)/points
test-faults: build faults tools
	rm -f $(HITS)
	CRI_SERVER_E2E=1 CRI_SERVER_MATRIX=full CRI_SERVER_POINTS=$(HITS) \
	  go test -count=1 -v -timeout 150m -exec $(CURDIR)/hack/as-root -run 'Matrix$$' ./test/e2e
	go run ./test/torture/points -errors $(HITS)

# cri-server beside containerd and CRI-O, all built here. QUICK=1 takes some five minutes, not some forty, and leaves the
# published page alone, unless OUT=docs/bench says otherwise. TARGETS, PHASES, and FLAGS='-passes 2' choose: bin/cribench -h.
BENCHOUT := $(or $(OUT),$(if $(QUICK),$(CACHE)/bench,docs/bench))
bench: build assets bench-peers
	go build -o bin/cribench ./test/bench/cribench
	@hack/as-root bin/cribench $(if $(QUICK),-quick) -out $(BENCHOUT) -doc $(dir $(BENCHOUT))benchmarks.md \
	  -targets '$(TARGETS)' -phases '$(PHASES)' $(FLAGS) -command 'make bench$(if $(QUICK), QUICK=1)$(if $(OUT), OUT=$(OUT))$(if $(FLAGS), FLAGS="$(FLAGS)")'

# Pulls of five images by cri-server, containerd and CRI-O; some three minutes. The next page of `make bench` has its table.
bench-pull: build bench-peers
	go build -o bin/pullbench ./test/bench/pullbench
	@hack/as-root bin/pullbench -containerd bin/peers/containerd -crio bin/peers/crio -doc docs/bench/pulls.md

# The same with the systemd cgroup driver, in a node with systemd, shorter: FLAGS, TARGETS, PHASES, OUT as hack/bench-node tells.
.PHONY: bench-node
bench-node: build assets bench-peers
	go build -o bin/cribench ./test/bench/cribench
	@OUT='$(OUT)' TARGETS='$(TARGETS)' PHASES='$(PHASES)' FLAGS='$(FLAGS)' hack/bench-node

bench-peers:
	@test/bench/peers/build bin/peers bin/cni

# The native engine beside runc and crun, without a server.
bench-engine: deps
	go build -o bin/enginebench ./test/bench/enginebench
	@hack/as-root bin/enginebench

clean:
	rm -rf bin $(CACHE)
