// Package monitoring holds alert rules and a dashboard for the plugin's metrics, and the
// tests of them. There is no code in it.
//
// It is a module of its own, so that Prometheus, whose parser and engine the tests use, stays
// out of all others. testdata/metrics.txt is the page of a real plugin: a test of
// cmd/rawblock-csi compares the two, and writes it anew with -update.
package monitoring
