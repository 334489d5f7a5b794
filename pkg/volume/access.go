package volume

import "fmt"

// AccessMode says who may use a volume, and how. The names and their meaning
// are those of VolumeCapability.AccessMode in the CSI specification.
type AccessMode string

// The access modes of the CSI specification 1.13.
const (
	SingleNodeWriter       AccessMode = "SINGLE_NODE_WRITER"
	SingleNodeReaderOnly   AccessMode = "SINGLE_NODE_READER_ONLY"
	SingleNodeSingleWriter AccessMode = "SINGLE_NODE_SINGLE_WRITER"
	SingleNodeMultiWriter  AccessMode = "SINGLE_NODE_MULTI_WRITER"
	MultiNodeReaderOnly    AccessMode = "MULTI_NODE_READER_ONLY"
	MultiNodeSingleWriter  AccessMode = "MULTI_NODE_SINGLE_WRITER"
	MultiNodeMultiWriter   AccessMode = "MULTI_NODE_MULTI_WRITER"
)

// ParseAccessMode returns the access mode with the given name, or an error
// that wraps ErrInvalid.
func ParseAccessMode(name string) (AccessMode, error) {
	switch mode := AccessMode(name); mode {
	case SingleNodeWriter, SingleNodeReaderOnly, SingleNodeSingleWriter, SingleNodeMultiWriter,
		MultiNodeReaderOnly, MultiNodeSingleWriter, MultiNodeMultiWriter:
		return mode, nil
	}
	return "", fmt.Errorf("%w: access mode %q is not one that this driver knows", ErrInvalid, name)
}

// ReadOnly reports whether the mode allows reading only. Kubelet sends such a
// mode with readonly=false, so the mode alone must be enough to forbid writing.
func (m AccessMode) ReadOnly() bool {
	return m == SingleNodeReaderOnly || m == MultiNodeReaderOnly
}

// MultiTarget reports whether a volume may be published at several targets of
// one node: the rows MULTI_NODE and SINGLE_NODE_MULTI_WRITER of the table at
// NodePublishVolume in the CSI specification.
func (m AccessMode) MultiTarget() bool {
	return m == SingleNodeMultiWriter || m.MultiNode()
}

// MultiNode reports whether several nodes may use a volume at once.
func (m AccessMode) MultiNode() bool {
	return m == MultiNodeReaderOnly || m == MultiNodeSingleWriter || m == MultiNodeMultiWriter
}
