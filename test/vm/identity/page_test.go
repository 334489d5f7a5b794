package identity

import (
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// What the commands of the page print of a disk are pins that hold.
func TestUdevCommandsOfThePage(t *testing.T) {
	commands := rig.Commands(t, "deploy.md", "TestUdevCommandsOfThePage")
	for bus, link := range map[machine.Bus]string{
		machine.SCSI:   "wwn-0x5000c500a1b20031",
		machine.NVMe:   "nvme-QEMU_NVMe_Ctrl_PAGE",
		machine.Virtio: "virtio-PAGE",
	} {
		t.Run(string(bus), func(t *testing.T) {
			d := machine.Add(t, machine.Disk{Bus: bus, Size: 64 * rig.MiB, Serial: "PAGE", WWN: 0x5000c500a1b20031})
			settle(t)
			link := "/dev/disk/by-id/" + link
			output, err := exec.CommandContext(rig.Context(t), "bash", "-uc", rig.Replace(t, commands[0], "/dev/disk/by-id/nvme-eui.0000000000000001", link)).Output()
			rig.Must(t, err)
			t.Logf("%s", output)
			facts := string(output)
			if !strings.Contains(facts, strings.TrimPrefix(link, "/dev/disk/by-id/")+" -> ../../"+d.Name+"\n") {
				t.Errorf("the link is not listed:\n%s", facts)
			}
			pins := []string{"serial", "PAGE", "size", strconv.Itoa(64 * rig.MiB)}
			for i := 0; i < len(pins); i += 2 {
				if !regexp.MustCompile(`(?m)^` + pins[i] + ` +` + pins[i+1] + `\s*$`).MatchString(facts) {
					t.Errorf("the commands do not print %s %s:\n%s", pins[i], pins[i+1], facts)
				}
			}
			if wwid := regexp.MustCompile(`(?m)^wwid +(\S+)$`).FindStringSubmatch(facts); wwid != nil {
				pins = append(pins, "wwid", wwid[1])
			} else if bus != machine.Virtio {
				t.Errorf("the commands print no WWID:\n%s", facts)
			}
			wantOpened(t, attributes(link, pins...), d)
		})
	}
}
