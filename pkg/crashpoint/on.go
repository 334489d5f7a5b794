//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
)

var (
	mu      sync.Mutex
	reached int
)

// Here marks the end of a step, and ends the process if it is the chosen one.
func Here(name string) {
	mu.Lock()
	defer mu.Unlock()
	reached++
	if path := os.Getenv("RAWBLOCK_CRASH_TRACE"); path != "" {
		trace, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(trace, name)
		trace.Close()
	}
	if at := os.Getenv("RAWBLOCK_CRASH_AT"); at == strconv.Itoa(reached) {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	}
}
