// Package volume is the vocabulary that all rooms share: how a volume may be
// accessed, and the sentinel errors. It imports nothing of the project and does
// nothing; whatever acts belongs elsewhere.
package volume
