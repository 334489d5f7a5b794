package monitoring_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

const reference = "../../docs/reference/metrics.md"

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// readRules reads the rules as Prometheus does: expressions, durations and templates are
// checked.
func readRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("rules.yaml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var rules []rulefmt.Rule
	for _, group := range groups.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) < 10 {
		t.Fatalf("there are only %d rules", len(rules))
	}
	return rules
}

// series is a line of the metrics page.
type series struct {
	labels labels.Labels
	value  float64
}

// readPage returns the page of a real plugin, as a Prometheus that reads it has it.
func readPage(t *testing.T) []series {
	t.Helper()
	var page []series
	for line := range strings.Lines(read(t, "testdata/metrics.txt")) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		split := strings.LastIndex(strings.TrimSpace(line), " ")
		metric, err := parser.NewParser(parser.Options{}).ParseMetric(line[:split])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		value, err := parseFloat(strings.TrimSpace(line[split:]))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		page = append(page, series{target(metric), value})
	}
	return append(page, series{target(labels.FromStrings(model.MetricNameLabel, "up")), 1})
}

// target adds what Prometheus itself adds.
func target(metric labels.Labels) labels.Labels {
	return labels.NewBuilder(metric).Set("instance", "node-1").Set("job", "rawblock-csi/rawblock-csi").Labels()
}

// absentValues are those of labels that a plugin in order does not have on its page; the
// reference has them.
var absentValues = []string{`grpc_status_code="Internal"`, `state=~"unreadable|failed|twin"`}

// checkExpression has each name and label, and each value that is asked for, be on the page.
func checkExpression(t *testing.T, where, expression string, page []series) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	known := map[string]bool{}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			for _, name := range checkSelector(t, where, selector, page) {
				known[name] = true
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if aggregate, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range aggregate.Grouping {
				if !known[label] {
					t.Errorf("%s: by the label %s, which no metric of it has", where, label)
				}
			}
		}
		return nil
	})
}

func checkSelector(t *testing.T, where string, selector *parser.VectorSelector, page []series) (known []string) {
	t.Helper()
	var named []series
	for _, one := range page {
		if one.labels.Get(model.MetricNameLabel) == selector.Name {
			named = append(named, one)
			one.labels.Range(func(label labels.Label) { known = append(known, label.Name) })
		}
	}
	if len(named) == 0 {
		t.Errorf("%s: there is no metric %s on the page", where, selector.Name)
		return nil
	}
	for _, matcher := range selector.LabelMatchers {
		if !slices.Contains(known, matcher.Name) {
			t.Errorf("%s: %s has no label %s", where, selector.Name, matcher.Name)
		}
		if slices.Contains(absentValues, matcher.String()) || matcher.Value == "$instance" {
			continue
		}
		if matcher.Name == model.MetricNameLabel {
			continue
		}
		for _, asked := range split(matcher) {
			if !slices.ContainsFunc(named, func(one series) bool { return asked.Matches(one.labels.Get(matcher.Name)) }) {
				t.Errorf("%s: no %s has %s", where, selector.Name, asked)
			}
		}
	}
	return known
}

// split returns a matcher for each of the values that one names, also of those it is not to
// be. One that names none, being a pattern, is left as it is.
func split(matcher *labels.Matcher) []*labels.Matcher {
	values := matcher.SetMatches()
	switch matcher.Type {
	case labels.MatchEqual, labels.MatchNotEqual:
		values = []string{matcher.Value}
	}
	if len(values) == 0 {
		return []*labels.Matcher{matcher}
	}
	var single []*labels.Matcher
	for _, value := range values {
		single = append(single, labels.MustNewMatcher(labels.MatchEqual, matcher.Name, value))
	}
	return single
}

func TestRulesAreAboutThePage(t *testing.T) {
	page, text := readPage(t), read(t, reference)
	for _, rule := range readRules(t) {
		checkExpression(t, rule.Alert, rule.Expr, page)
		if !slices.Contains([]string{"warning", "critical"}, rule.Labels["severity"]) {
			t.Errorf("%s: the severity is %q", rule.Alert, rule.Labels["severity"])
		}
		const reference = "https://github.com/rawblock-csi/rawblock-csi/blob/main/docs/reference/metrics.md#"
		if rule.Annotations["runbook_url"] != reference+strings.ToLower(rule.Alert) || !strings.Contains(text, "\n### "+rule.Alert+"\n") {
			t.Errorf("%s: the runbook is %s", rule.Alert, rule.Annotations["runbook_url"])
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^### (Rawblock\w+)$`).FindAllStringSubmatch(text, -1) {
		if !slices.ContainsFunc(readRules(t), func(rule rulefmt.Rule) bool { return rule.Alert == heading[1] }) {
			t.Errorf("the reference has an alert %s that there is not", heading[1])
		}
	}
}

// The rules of the operator are those of the file.
func TestPrometheusRule(t *testing.T) {
	var file, object struct {
		Groups any
		Spec   struct{ Groups any }
	}
	for path, into := range map[string]any{"rules.yaml": &file, "prometheusrule.yaml": &object} {
		if err := yaml.Unmarshal([]byte(read(t, path)), into); err != nil {
			t.Fatal(err)
		}
	}
	want, err := json.Marshal(file.Groups)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(object.Spec.Groups); err != nil || string(got) != string(want) {
		t.Errorf("prometheusrule.yaml has %s (%v), want %s", got, err, want)
	}
}

func TestDashboardIsAboutThePage(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	page, ids := readPage(t), map[int]bool{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] || len(panel.Targets) == 0 {
			t.Errorf("%s: its number is %d, and it has %d expressions", panel.Title, panel.ID, len(panel.Targets))
		}
		ids[panel.ID] = true
		for _, one := range panel.Targets {
			// Grafana replaces it before Prometheus sees it.
			checkExpression(t, panel.Title, strings.ReplaceAll(one.Expr, "$__rate_interval", "5m"), page)
		}
	}
	if len(ids) < 10 || len(dashboard.Templating.List) != 2 {
		t.Errorf("there are %d panels and %d variables", len(ids), len(dashboard.Templating.List))
	}
}
