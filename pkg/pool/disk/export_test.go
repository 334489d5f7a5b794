package disk

import "github.com/rawblock-csi/rawblock-csi/pkg/gpt"

// WithStep has a pool offer what is wiped in steps of so many bytes.
func (o Options) WithStep(bytes uint64) Options {
	o.step = bytes
	return o
}

// Types of entries, and the ID of that of a volume.
var (
	ClaimType   = gpt.ClaimType
	VolumeType  = volumeType
	WipingType  = wipingType
	UnwipedType = unwipedType
	VolumeID    = volumeID
)

// LetGo has the pool give up its claims, so that a loop device can be taken away as
// a disk can be pulled out: the kernel keeps one that anybody has open.
func (p *Pool) LetGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		m.claim.Close()
		m.claim = nil
	}
}
