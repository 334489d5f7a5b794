package config

// Kind returns the key of the kind of a pool, as it stands in the file.
func (p Pool) Kind() string {
	switch {
	case p.Disk != nil:
		return "disk"
	case p.LVM != nil:
		return "lvm"
	default:
		return "file"
	}
}
