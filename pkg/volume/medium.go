package volume

// Medium is where the bytes of a volume are, in words for an operator.
type Medium struct {
	// Kind is what it is: file, partition, disk or logical volume.
	Kind string
	// Path is that of the file, or of the node of the disk.
	Path string
	// Detail says which part of it, if not all: empty otherwise.
	Detail string
}
