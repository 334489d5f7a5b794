package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrBorrowed says that a program has rights that its caller has not.
var ErrBorrowed = errors.New("this program runs with rights that its caller has not")

// CheckOwnRights returns ErrBorrowed where the program is setuid, setgid, or has file
// capabilities, and was started by who has not the same: it would read files and change
// devices for anybody. The kernel says so in AT_SECURE (getauxval(3)), and keeps it over
// what the program does to its IDs.
func CheckOwnRights() error {
	const atSecure = 23 // include/uapi/linux/auxvec.h
	vector, err := unix.Auxv()
	if err != nil {
		return fmt.Errorf("see with whose rights this program runs: %w", err)
	}
	for _, entry := range vector {
		if entry[0] == atSecure && entry[1] != 0 {
			return fmt.Errorf("%w: take the setuid and setgid bits and file capabilities off its file (chmod ug-s; setcap -r), and run it as root", ErrBorrowed)
		}
	}
	if unix.Getuid() != unix.Geteuid() || unix.Getgid() != unix.Getegid() {
		return fmt.Errorf("%w: its user is %d and its effective user %d; run it as root", ErrBorrowed, unix.Getuid(), unix.Geteuid())
	}
	return nil
}
