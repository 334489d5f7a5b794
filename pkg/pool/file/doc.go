// Package file is the pool of volumes that are files behind loop devices: it
// works on any machine, and is what a node has that is not configured.
//
// The directory of the pool is its database. Whatever is in it under its name is
// whole: it was made in work, synced, and renamed into its place.
//
//	volumes/NAME/data            the bytes of the volume
//	volumes/NAME/record.json     what the bytes do not tell: see record
//	snapshots/NAME/data, record.json
//	work/make-*-*                what is being made
//	work/gone-*                  what is being removed
//	lock                         held by the process that uses the directory
//
// A record holds no fact that the file itself states, such as its size, so the
// two cannot disagree. What a crash leaves in work is removed at the next start.
//
// Rules: a device of a volume is found by its file's inode, never by a number or
// a name (blockdev.Loops). No program is run.
package file
