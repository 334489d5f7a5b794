// Command pause is the first process of a pod: it keeps the pod's namespaces, and
// lets the kernel take away what ends in them. It does what pause.c of Kubernetes
// does, without a C compiler.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGCHLD)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
}
