package rig

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/test/oci"
)

// Container is a running container. It goes with its test.
type Container struct{ *oci.Container }

// NewContainer starts a container. Its directory need not be given.
func NewContainer(t testing.TB, config oci.Config) *Container {
	t.Helper()
	RequireContainers(t)
	if config.Dir == "" {
		config.Dir = t.TempDir()
	}
	config.Prefix = "rawblock-test"
	container, err := oci.Start(Context(t), config)
	Must(t, err)
	t.Cleanup(func() {
		// The context of the test has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := container.Delete(ctx); err != nil {
			t.Error(err)
		}
	})
	return &Container{container}
}

// Run runs a command in the container, which must succeed, and returns what it printed.
func (c *Container) Run(t testing.TB, command ...string) string {
	t.Helper()
	output, err := c.Exec(Context(t), command...)
	Must(t, err)
	return output
}

// RequireContainers skips the test, loudly, where no container can be started;
// in CI it fails it.
func RequireContainers(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	RequireProgram(t, "runc")
	RequireProgram(t, "busybox")
}

// RequireProgram skips the test, loudly, where a program is not installed; in CI
// it fails it.
func RequireProgram(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip("SKIPPED:", err)
}
