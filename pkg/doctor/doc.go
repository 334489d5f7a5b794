// Package doctor finds what calls that did not end, and people, have left on a node,
// says what each means and what to do about it, and removes what can be removed
// without a loss.
//
// Rules. What is mended (Fix) is what nobody uses and nothing is lost with: a mount, a
// loop device or a record that stands for nothing any more, and a copy of a partition
// table of which another is whole. Whatever holds data, or could, is left as it is, with
// the command for a human who knows. What looks like a leftover and is not provably one
// of this driver is not told at all: drivers share kubelet's directories, and loop devices
// are everybody's.
//
// What was found is found again under the locks of the volumes before it is mended, and
// nothing that a process has open is touched. Who has something open only shows in /proc
// where all processes do: elsewhere nothing is mended.
package doctor
