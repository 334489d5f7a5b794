package deploy_test

import (
	"maps"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// Volumes that are made by hand need nobody who may use the Kubernetes API.
func TestPluginAloneHasNoRights(t *testing.T) {
	for _, dir := range []string{base, sidecars} {
		objects := load(t, dir)
		if n := len(rules(objects)); n != 0 {
			t.Errorf("%s grants rights by %d rules", dir, n)
		}
		if n := len(all[appsv1.Deployment](objects)); n != 0 {
			t.Errorf("%s has %d Deployments", dir, n)
		}
	}
}

func rules(objects []any) []rbacv1.PolicyRule {
	var found []rbacv1.PolicyRule
	for _, role := range all[rbacv1.ClusterRole](objects) {
		found = append(found, role.Rules...)
	}
	for _, role := range all[rbacv1.Role](objects) {
		found = append(found, role.Rules...)
	}
	return found
}

// The driver has no secrets, and changes nothing of nodes, pods and roles.
func TestRightsAreNarrow(t *testing.T) {
	onlyRead := []string{"nodes", "pods", "storageclasses", "volumeattributesclasses", "volumesnapshotclasses"}
	never := []string{"*", "secrets", "roles", "clusterroles", "rolebindings", "clusterrolebindings", "serviceaccounts"}
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) {
		for _, rule := range rules(objects) {
			for _, resource := range rule.Resources {
				if slices.Contains(never, resource) || slices.Contains(rule.Verbs, "*") || slices.Contains(rule.APIGroups, "*") {
					t.Errorf("a rule is too wide: %v", rule)
				}
				writes := slices.ContainsFunc(rule.Verbs, func(verb string) bool { return verb != "get" && verb != "list" && verb != "watch" })
				if slices.Contains(onlyRead, resource) && writes {
					t.Errorf("nobody has a reason to change %s: %v", resource, rule.Verbs)
				}
			}
		}
	})
}

// binding is what a RoleBinding and a ClusterRoleBinding have in common.
type binding struct {
	name     string
	role     rbacv1.RoleRef
	subjects []rbacv1.Subject
}

func bindings(objects []any) []binding {
	var found []binding
	for _, b := range all[rbacv1.ClusterRoleBinding](objects) {
		found = append(found, binding{b.Name, b.RoleRef, b.Subjects})
	}
	for _, b := range all[rbacv1.RoleBinding](objects) {
		found = append(found, binding{b.Name, b.RoleRef, b.Subjects})
	}
	return found
}

// openshiftRole is of OpenShift, and there the right to be what the pods are; no other
// deployment may name it.
const openshiftRole = "ClusterRole system:openshift:scc:privileged"

func TestOnlyOpenShiftsRoleIsForeign(t *testing.T) {
	for _, dir := range deployments {
		named := slices.ContainsFunc(bindings(load(t, dir)), func(b binding) bool { return b.role.Kind+" "+b.role.Name == openshiftRole })
		if named != (dir == openshift) {
			t.Errorf("%s binds the %s: %t", dir, openshiftRole, named)
		}
	}
}

func TestRightsAreBound(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) {
		unbound := map[string]bool{}
		for _, role := range all[rbacv1.ClusterRole](objects) {
			unbound["ClusterRole "+role.Name] = true
		}
		for _, role := range all[rbacv1.Role](objects) {
			unbound["Role "+role.Name] = true
		}
		for _, binding := range bindings(objects) {
			role := binding.role.Kind + " " + binding.role.Name
			if !unbound[role] && role != openshiftRole {
				t.Errorf("binding %s: there is no %s, or it is bound already", binding.name, role)
			}
			delete(unbound, role)
			for _, subject := range binding.subjects {
				if want := account(t, objects, subject.Name).Namespace; subject.Kind != rbacv1.ServiceAccountKind || subject.Namespace != want {
					t.Errorf("binding %s: the subject is %v, expected a ServiceAccount of namespace %s", binding.name, subject, want)
				}
			}
		}
		if len(unbound) != 0 {
			t.Errorf("nobody has %v", unbound)
		}
	})
}

// What uses the Kubernetes API has a token, and the plugin has none: neither its
// own nor one that all containers of the pod are given.
func TestWhoHoldsCredentials(t *testing.T) {
	for _, dir := range deployments {
		objects := load(t, dir)
		pod := the[appsv1.DaemonSet](t, objects).Spec.Template.Spec
		for what, automount := range map[string]*bool{
			"pod": pod.AutomountServiceAccountToken, "account": account(t, objects, pod.ServiceAccountName).AutomountServiceAccountToken,
		} {
			if automount == nil || *automount {
				t.Errorf("%s: the %s does not say automountServiceAccountToken: false", dir, what)
			}
		}
		for _, container := range pod.Containers {
			_, serves := flagsOf(t, container)["node-deployment"]
			if has := hasToken(pod, container); has != serves {
				t.Errorf("%s: container %s has a token: %t, and needs one: %t", dir, container.Name, has, serves)
			}
		}
		for _, deployment := range all[appsv1.Deployment](objects) {
			if automount := deployment.Spec.Template.Spec.AutomountServiceAccountToken; automount == nil || !*automount {
				t.Errorf("%s: %s has no token", dir, deployment.Name)
			}
		}
	}
}

// hasToken reports whether a container has a token where clients look for it.
func hasToken(pod corev1.PodSpec, container corev1.Container) bool {
	for _, mount := range container.VolumeMounts {
		for _, volume := range pod.Volumes {
			if mount.Name == volume.Name && mount.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" && volume.Projected != nil {
				return slices.ContainsFunc(volume.Projected.Sources, func(source corev1.VolumeProjection) bool {
					return source.ServiceAccountToken != nil && source.ServiceAccountToken.Path == "token"
				})
			}
		}
	}
	return false
}

func TestEverythingIsInOneNamespace(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, _ corev1.PodSpec) {
		want := the[corev1.Namespace](t, objects).Name
		for _, object := range objects {
			if object, ok := object.(interface{ GetNamespace() string }); ok && isNamespaced(object) && object.GetNamespace() != want {
				t.Errorf("%T is in namespace %q, expected %q", object, object.GetNamespace(), want)
			}
		}
	})
}

func isNamespaced(object any) bool {
	switch object.(type) {
	case *appsv1.DaemonSet, *appsv1.Deployment, *corev1.ServiceAccount, *corev1.ConfigMap, *rbacv1.Role, *rbacv1.RoleBinding:
		return true
	}
	return false
}

// Only Prometheus may read what the plugin serves on the pod network, and the policy is for
// the pod and the port that there are.
func TestMetricsAreForPrometheusAlone(t *testing.T) {
	eachDeployment(t, func(t *testing.T, objects []any, pod corev1.PodSpec) {
		policy, node := the[networkingv1.NetworkPolicy](t, objects).Spec, the[appsv1.DaemonSet](t, objects)
		if !maps.Equal(policy.PodSelector.MatchLabels, node.Spec.Selector.MatchLabels) || !slices.Equal(policy.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
			t.Errorf("the policy is for %v, %v", policy.PodSelector.MatchLabels, policy.PolicyTypes)
		}
		container, _ := plugin(t, pod)
		for _, rule := range policy.Ingress {
			if len(rule.From) == 0 {
				t.Error("everybody may")
			}
			for _, peer := range rule.From {
				if peer.NamespaceSelector == nil || len(peer.NamespaceSelector.MatchLabels) == 0 {
					t.Errorf("more than a namespace may: %+v", peer)
				}
			}
			for _, port := range rule.Ports {
				if !slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.Port.StrVal }) {
					t.Errorf("the plugin has no port %s", port.Port)
				}
			}
			if len(rule.Ports) == 0 {
				t.Error("every port is open")
			}
		}
	})
}
