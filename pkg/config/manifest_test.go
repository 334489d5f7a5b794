package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

// The configuration in the manifests is there to be read and changed; as it
// stands it says what holds without one.
func TestManifestSaysTheDefaults(t *testing.T) {
	got, err := config.Load("../../deploy/kubernetes/base/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Default(), got, ignoreLines); diff != "" {
		t.Error(diff)
	}
}
