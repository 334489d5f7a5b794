package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The configuration in the manifests is there to be read and changed; as it
// stands it says what holds without one.
func TestManifestSaysTheDefaults(t *testing.T) {
	config, err := Load("../../deploy/kubernetes/base/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), config); diff != "" {
		t.Error(diff)
	}
}
