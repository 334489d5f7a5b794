package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The commands of the guides that name something of the reader's own work, in capital
// letters, with the names of what the test has.
func TestNamedCommands(t *testing.T) {
	s := newScene(t)
	dir := tutorialDir(t)
	inNamespace := `kubectl() { command kubectl --namespace=` + s.namespace + ` "$@"; }` + "\n"
	run := func(page string, names map[string]string) {
		for _, commands := range marked(t, page, "TestNamedCommands") {
			for capitals, name := range names {
				commands = regexp.MustCompile(`\b`+capitals+`\b`).ReplaceAllLiteralString(commands, name)
			}
			t.Logf("%s:\n%s", page, commands)
			t.Log(runStep(t, dir, inNamespace+commands))
		}
	}

	s.makeClaim("old", s.claimSpec("64Mi", corev1.ReadWriteOnce))
	s.makeClaim("new", s.claimSpec("128Mi", corev1.ReadWriteOnce))
	writer := s.run(withClaim(podSpec("writer", idle...), "old"))
	sum := writer.fill(devicePath)
	node := node{writer.node()}
	writer.delete()
	run("guides/replace-disk.md", map[string]string{"OLD": "old", "NEW": "new"})
	(&pod{s, "copy"}).delete()
	reader := s.run(withClaim(podSpec("reader", idle...), "new"))
	reader.wantSum(devicePath, sum)

	plugin, err := node.plugin(t.Context(), s)
	must(t, err)
	run("deploy.md", map[string]string{"NODE": node.name, "POD": plugin.Name})
	run("uninstall.md", nil)

	s.newDisk(node).localVolume("local")
	s.run(withClaim(podSpec("local", idle...), "local"))
	run("guides/migrate-local-static.md", map[string]string{"OLD": s.namespace})

	must(t, os.WriteFile(filepath.Join(dir, "new-key"), []byte("another key of more than 16 bytes"), 0o600))
	t.Cleanup(func() { runStep(t, dir, "kubectl delete --ignore-not-found namespace rawblock-keys") })
	for _, commands := range marked(t, "encryption.md", "TestNamedCommands") {
		t.Log(commands, runStep(t, dir, commands)) // They name their namespaces.
	}
	runStep(t, dir, "cmp key old-key")
	for key, file := range map[string]string{"encryptionKey": "new-key", "encryptionKeyPrevious": "old-key"} {
		runStep(t, dir, "kubectl -n rawblock-keys get secret volume-key -o jsonpath='{.data."+key+"}' | base64 -d | cmp - "+file)
	}
}
