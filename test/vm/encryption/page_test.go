package encryption_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The commands of the page that are for a node: a key is changed in use, the header is
// saved and put back, and a volume is opened without the plugin.
func TestCommandsOfThePage(t *testing.T) {
	commands := rig.Commands(t, "encryption.md", "TestCommandsOfThePage")
	if len(commands) != 3 {
		t.Fatalf("there are %d blocks of commands", len(commands))
	}
	n := newNode(t, newFiles(t, "ext4"))
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	dir, newer := t.TempDir(), newKey(t)
	put := func(file, key string) { rig.Must(t, os.WriteFile(filepath.Join(dir, file), []byte(key), 0o600)) }
	run := func(commands string) string {
		t.Helper()
		command := exec.CommandContext(rig.Context(t), "bash", "-euxc", commands)
		command.Dir = dir
		output, err := command.CombinedOutput()
		t.Logf("%s", output)
		rig.Must(t, err)
		return string(output)
	}
	mapping, _ := v.mapping()
	raw := v.rawPath(t)

	put("old-key", n.key)
	put("new-key", newer)
	if shown := run(rig.Replace(t, commands[0], "rawblock:files:"+name, mapping, "/dev/loop3", raw)); !strings.Contains(shown, raw) {
		t.Errorf("the device %s is not shown", raw)
	}
	run(rig.Replace(t, commands[1], "/dev/loop3", raw))
	v.drop(t, target)

	writeRaw(t, v.rawPath(t), make([]byte, header), 0)
	v.secrets = map[string]string{driver.KeySecret: newer}
	if v.stage(rig.Context(t)) == nil {
		t.Error("a volume without a header is staged")
	}
	raw = v.rawPath(t)
	run("cryptsetup --batch-mode luksHeaderRestore " + raw + " --header-backup-file header")
	put("key", newer)
	run(rig.Replace(t, commands[2], "/dev/loop3", raw))
	wantData(t, "/dev/mapper/rescued", plaintext, 0)
	run("cryptsetup close rescued")
	wantData(t, v.use(t, "pod"), plaintext, 0)
}
