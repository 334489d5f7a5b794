package config

import (
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// CheckCaller returns an error where the program has rights that whoever called it has
// not, as a setuid one: the file that they name would be read for them, and what it
// configures be changed. A command calls it before all else. Errors: linux.ErrBorrowed.
func CheckCaller() error {
	if err := linux.CheckOwnRights(); err != nil {
		return fmt.Errorf("refuse to act for another user: %w", err)
	}
	return nil
}
