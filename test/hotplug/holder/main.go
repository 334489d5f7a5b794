// Command holder holds a device as a program in a container may: by a descriptor, or
// by a mapping alone. It needs no libraries. It says when it does, and lets go when
// its input ends. For each line of input it writes to the device, by a descriptor, and
// says how that went.
package main

import (
	"bufio"
	"fmt"
	"os"
	"syscall"
)

func main() {
	if err := hold(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "holder:", err)
		os.Exit(1)
	}
}

func hold(how, path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if how == "mapping" {
		memory, err := syscall.Mmap(int(file.Fd()), 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		if err != nil {
			return err
		}
		defer func() { memory[0]++ }() // It works until the end.
		if err := file.Close(); err != nil {
			return err
		}
	}
	fmt.Println("holding")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(write(file, lines.Bytes()))
	}
	return nil
}

// write writes text to the beginning of a device, and waits until it is there.
func write(file *os.File, text []byte) string {
	if _, err := file.WriteAt(text, 0); err != nil {
		return err.Error()
	}
	if err := file.Sync(); err != nil {
		return err.Error()
	}
	return "written"
}
