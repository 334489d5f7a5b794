//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

var (
	mu      sync.Mutex
	reached int
)

// Here marks the end of a step, and ends or stops the process if it is the chosen
// one.
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
	switch strconv.Itoa(reached) {
	case os.Getenv("RAWBLOCK_CRASH_AT"):
		signal(syscall.SIGKILL)
		select {}
	case os.Getenv("RAWBLOCK_STOP_AT"):
		signal(syscall.SIGSTOP)
		// It may reach another thread first.
		time.Sleep(10 * time.Millisecond)
	}
}

func signal(number syscall.Signal) {
	if err := syscall.Kill(os.Getpid(), number); err != nil {
		panic(err)
	}
}
