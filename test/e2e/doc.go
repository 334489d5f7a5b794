// Package e2e has the tests of the plugin where its users run it: in the real
// cluster of two nodes that hack/cluster starts on this machine. `make e2e` starts
// it, runs them and takes it down.
//
// They can be run one by one in a cluster that is up:
//
//	eval "$(cd hack/cluster && go run . env)"
//	cd test/e2e && go test -count=1 -v -run TestDataOutlivesPod
//
// Each test has a namespace and a storage class of its own, and fails where it
// leaves anything on a node: a mount, a loop device, a file or link of kubelet's, a
// volume or a record of it. They do not run at the same time: some restart what all need.
package e2e
