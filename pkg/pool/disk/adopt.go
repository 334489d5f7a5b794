package disk

import (
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
)

// adopt makes a disk one of the pool where it is provably free.
func (p *Pool) adopt(device *blockdev.Device, disk blockdev.Disk) (gpt.Table, error) {
	raw, err := device.Raw(linux.RawWrite | linux.RawExclusive)
	if err != nil {
		return gpt.Table{}, err
	}
	defer raw.Close()
	if err := device.CheckUnexposed(); err != nil {
		return gpt.Table{}, err
	}
	// Whatever has it holds a claim, too, which Raw names; this does not rely on it.
	if len(disk.Holders) > 0 {
		return gpt.Table{}, refusef(busy, "devices are built upon it: %s", strings.Join(disk.Holders, ", "))
	}
	findings, err := signature.Find(raw, int64(disk.Size)) //nolint:gosec // Disks have at most 2^63 bytes.
	if err != nil {
		return gpt.Table{}, refusef(failed, "%v", err)
	}
	if len(findings) > 0 {
		return gpt.Table{}, refusef(occupied, "%s", describe(findings))
	}
	if disk.HasPartitions {
		return gpt.Table{}, refusef(busy, "the kernel knows partitions of it, and there is no table on it that says why; have the kernel forget them with partx -d")
	}
	table, err := p.newTable(disk)
	if err != nil {
		return gpt.Table{}, err
	}
	if err := gpt.Format(raw, &table); err != nil {
		return gpt.Table{}, err
	}
	p.logger.Info("Disk was free and is adopted", "disk", disk.NodePath, "id", table.Disk, "size", disk.Size)
	return table, nil
}

func describe(findings []signature.Finding) string {
	const most = 3
	var texts []string
	for i, finding := range findings {
		if i == most {
			texts = append(texts, "...")
			break
		}
		texts = append(texts, finding.String())
	}
	return "it has data: " + strings.Join(texts, ", ") + "; if nobody needs it, wipe the disk with blkdiscard -z"
}

// cleaning is the wipe of space that is not a volume's: not the secure one, which
// not all disks can do.
func (p *Pool) cleaning() wipe {
	if p.wipe == wipeSecure {
		return wipeDiscard
	}
	return p.wipe
}

// newTable returns the table of a disk that is adopted. Only its head and tail are
// known to be free of data of a former owner: all of it is wiped first.
func (p *Pool) newTable(disk blockdev.Disk) (gpt.Table, error) {
	table, err := gpt.New(gpt.NewGUID(), disk.Size, disk.LogicalBlockSize)
	if err != nil {
		return table, refusef(unfit, "%v", err)
	}
	table.Entries[claimIndex] = newClaim(p.name)
	all := room(&table)
	if all.start >= all.end {
		return table, refusef(unfit, "a disk of %d bytes is too small", disk.Size)
	}
	table.Entries[claimIndex+1] = released(newVolume(p.name, "", p.cleaning(), all))
	return table, nil
}
