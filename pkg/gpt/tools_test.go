package gpt_test

import (
	"encoding/binary"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// rawDisk opens a disk as the disk pool does.
func rawDisk(t *testing.T, disk *rig.Disk) *linux.Raw {
	t.Helper()
	node, err := linux.OpenPath(disk.Path)
	rig.Must(t, err)
	defer node.Close()
	raw, err := linux.OpenRaw(node, linux.RawWrite)
	rig.Must(t, err)
	t.Cleanup(raw.Close)
	return raw
}

// checkWithTools has sfdisk and sgdisk read a table on a real disk, and reads one
// that sfdisk has made.
func checkWithTools(t *testing.T, blockSize uint64) {
	t.Helper()
	disk := rig.NewDiskWithBlockSize(t, size, uint32(blockSize))
	raw, table := rawDisk(t, disk), newTable(blockSize)
	rig.Must(t, gpt.Format(raw, &table))
	if out := run(t, "sgdisk", "-v", disk.Path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
	run(t, "sfdisk", "--verify", disk.Path)
	type partition struct {
		Node             string
		Start, Size      uint64
		Type, UUID, Name string
		Attrs            string
	}
	var got struct {
		PartitionTable struct {
			Label, ID         string
			FirstLBA, LastLBA uint64
			Partitions        []partition
		}
	}
	rig.Must(t, json.Unmarshal([]byte(run(t, "sfdisk", "--json", disk.Path)), &got))
	var want []partition
	for _, i := range table.Sorted() {
		entry := table.Entries[i]
		want = append(want, partition{
			disk.PartitionPath(i + 1), entry.Start / blockSize, entry.Size / blockSize,
			entry.Type.String(), entry.ID.String(), entry.Name, map[int]string{6: "GUID:48,50,63"}[i],
		})
	}
	if diff := cmp.Diff(want, got.PartitionTable.Partitions); diff != "" || got.PartitionTable.ID != table.Disk.String() {
		t.Errorf("sfdisk reads (-want +got):\n%s\nof disk %s, want %s", diff, got.PartitionTable.ID, table.Disk)
	}

	command := exec.CommandContext(t.Context(), "sfdisk", "--no-reread", "--no-tell-kernel", disk.Path)
	command.Stdin = strings.NewReader("label: gpt\nstart=1MiB, size=2MiB, name=theirs\n")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	found, err := gpt.Read(raw, size, blockSize)
	if err != nil || found.Primary != nil || found.Backup != nil {
		t.Fatalf("a table of sfdisk: %v, %v, %v", found.Primary, found.Backup, err)
	}
	if entry := found.Table.Entries[0]; entry.Name != "theirs" || entry.Start != rig.MiB || entry.Size != 2*rig.MiB || entry.Type != linuxType {
		t.Errorf("a table of sfdisk: %+v", entry)
	}
}

// The protective MBR of a disk of more blocks than 32 bits can count says as much
// as they can (UEFI 2.10, table 5.4).
func TestLargeDisk(t *testing.T) {
	const large = 3 << 40
	disk := rig.NewDisk(t, large)
	table := must(gpt.New(gpt.NewGUID(), large, 512))
	_, end := table.Usable()
	table.Entries[0] = gpt.Entry{Type: linuxType, ID: gpt.NewGUID(), Start: rig.MiB, Size: end - rig.MiB, Name: "all"}
	raw := rawDisk(t, disk)
	rig.Must(t, gpt.Format(raw, &table))
	if out := run(t, "sgdisk", "-v", disk.Path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
	block := make([]byte, 512)
	_, err := raw.ReadAt(block, 0)
	rig.Must(t, err)
	if got := binary.LittleEndian.Uint32(block[458:]); got != 1<<32-1 {
		t.Errorf("the protective MBR is for %#x blocks", got)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}
