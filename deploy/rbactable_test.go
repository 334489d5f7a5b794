package deploy_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestRightsInTheDocs compares the table of docs/deploy.md with the manifests, in the
// words of "kubectl auth can-i --list".
func TestRightsInTheDocs(t *testing.T) {
	objects := load(t, full)
	granted := map[string][]rbacv1.PolicyRule{}
	for _, role := range all[rbacv1.ClusterRole](objects) {
		granted["ClusterRole "+role.Name] = role.Rules
	}
	for _, role := range all[rbacv1.Role](objects) {
		granted["Role "+role.Name] = role.Rules
	}
	var want []string
	for _, binding := range bindings(objects) {
		where := map[string]string{"ClusterRole": "everywhere", "Role": "its namespace"}[binding.role.Kind]
		for _, subject := range binding.subjects {
			for _, rule := range granted[binding.role.Kind+" "+binding.role.Name] {
				for _, resource := range resourcesOf(rule) {
					want = append(want, fmt.Sprintf("| `%s` | `%s` | `%s` | %s | %s |", subject.Name, binding.role.Name, resource, strings.Join(rule.Verbs, " "), where))
				}
			}
		}
	}
	slices.Sort(want)
	got := regexp.MustCompile("(?m)^\\| `rawblock-csi-[a-z]+` \\| `rawblock-csi-.*$").FindAllString(read(t, "../docs/deploy.md"), -1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/deploy.md (-manifests +docs):\n%s\nIt should have:\n%s", diff, strings.Join(want, "\n"))
	}
}

// resourcesOf names resources as kubectl does: resource.group/subresource.
func resourcesOf(rule rbacv1.PolicyRule) []string {
	var found []string
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			name, sub, isSub := strings.Cut(resource, "/")
			if group != "" {
				name += "." + group
			}
			if isSub {
				name += "/" + sub
			}
			found = append(found, name)
		}
	}
	return found
}
