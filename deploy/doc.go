// Package deploy holds what an administrator applies to a cluster, and the tests
// of it. There is no code in it.
//
// It is a module of its own, so that kustomize and Helm, with which the tests render
// the manifests and the chart, stay out of the plugin's dependencies. kubernetes/base
// is the plugin, kubernetes/overlays are variants of it, kubernetes/examples is to
// copy from; helm/rawblock-csi is the same as a chart. What they render to stands in
// testdata, for reviewers to see what a change of a manifest changes in a cluster;
// after such a change, write it anew:
//
//	cd deploy && go test . -update
package deploy
