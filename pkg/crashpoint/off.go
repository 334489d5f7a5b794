//go:build !crashpoints

package crashpoint

// Here marks the end of a step. In this build it does nothing.
func Here(string) {}
