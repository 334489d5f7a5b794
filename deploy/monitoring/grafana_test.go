package monitoring_test

import (
	"errors"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// Grafana's own schemas have the fields and types of the dashboard, of its panels' options
// and of the queries of Prometheus. (How it is drawn, only Grafana shows.)
func TestGrafanaKnowsTheDashboard(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	var seen dashboard.Dashboard //nolint:staticcheck // Newer schemas are not those of files that Grafana imports.
	wantNone(t, seen.UnmarshalJSONStrict([]byte(read(t, "dashboard.json"))))
	wantNone(t, seen.Validate())
	if len(seen.Panels) < 10 {
		t.Errorf("there are only %d panels", len(seen.Panels))
	}
}

// wantNone fails the test where there are errors. The schemas' list of none is not nil.
func wantNone(t *testing.T, err error) {
	t.Helper()
	if found := cog.BuildErrors(nil); err == nil || errors.As(err, &found) && len(found) == 0 {
		return
	}
	t.Error(err)
}
