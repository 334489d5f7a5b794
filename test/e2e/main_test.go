package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) {
	_, err := exec.LookPath(clusterProgram)
	if os.Getenv("KUBECONFIG") == "" || err != nil {
		fmt.Fprintln(os.Stderr, `FAIL: no cluster is in the environment; call "make cluster-up", and eval "$(cd hack/cluster && go run . env)"`)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
