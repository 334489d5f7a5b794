package driver

import (
	"context"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// What Kubernetes takes of one volume, or of one driver on a node: it drops all of an
// answer that is more (maxItems and maxBytes of PodVolumeHealth and
// VolumeHealthCondition in k8s.io/api, maxStorageHealthConditions in kubelet).
const (
	maxConditions = 16
	maxMessage    = 1024
)

// NodeGetVolumeHealth returns what is wrong with a volume. Only its ID counts: kubelet
// sends a directory of its own as staging path of a raw block volume, and no publish path.
func (n *node) NodeGetVolumeHealth(ctx context.Context, req *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	found, err := n.reports.getVolume(ctx, req.GetVolumeId())
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: found}, err
}

// NodeGetStorageHealth returns what is wrong with the pools of this node.
func (n *node) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	conditions, err := n.reports.storage(ctx)
	if err != nil {
		return nil, err
	}
	response := &csi.NodeGetStorageHealthResponse{}
	for _, condition := range fit(conditions) {
		status := csi.StorageHealthErrorType_STORAGE_DEGRADED
		if condition.Severity >= volume.Inaccessible {
			status = csi.StorageHealthErrorType_STORAGE_UNREACHABLE
		}
		response.BackendHealth = append(response.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: status, Reason: string(condition.Reason), Message: condition.Message,
		})
	}
	return response, nil
}

// ControllerGetVolumeHealth returns what is wrong with a volume of this node. There is
// no other view of it than the node's.
func (c *controller) ControllerGetVolumeHealth(ctx context.Context, req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	found, err := c.reports.getVolume(ctx, req.GetVolumeId())
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: found}, err
}

// ControllerListVolumeHealth returns the volumes of this node's pools with which
// something is wrong, by their IDs.
func (c *controller) ControllerListVolumeHealth(ctx context.Context, req *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	names, err := c.reports.provisioned(ctx)
	if err != nil {
		return nil, err
	}
	conditions, err := c.reports.all(ctx, names)
	if err != nil {
		return nil, err
	}
	found := map[string]*csi.VolumeHealth{}
	for volumeID, wrong := range conditions {
		found[volumeID] = describeHealth(volumeID, wrong)
	}
	entries, next, err := page(found, req.GetStartingToken(), req.GetMaxEntries())
	return &csi.ControllerListVolumeHealthResponse{Entries: entries, NextToken: next}, err
}

func (r *reports) getVolume(ctx context.Context, volumeID string) (*csi.VolumeHealth, error) {
	if err := checkVolumeID(volumeID); err != nil {
		return nil, err
	}
	conditions, err := r.volume(ctx, r.volumes.identity(volumeID))
	if err != nil {
		return nil, err
	}
	return describeHealth(volumeID, conditions), nil
}

// severities are the words of CSI for those of this project.
var severities = map[volume.Severity]csi.VolumeHealthErrorType{
	volume.Degraded:     csi.VolumeHealthErrorType_DEGRADED,
	volume.Inaccessible: csi.VolumeHealthErrorType_INACCESSIBLE,
	volume.DataLoss:     csi.VolumeHealthErrorType_DATA_LOSS,
}

func describeHealth(volumeID string, conditions []volume.Condition) *csi.VolumeHealth {
	described := &csi.VolumeHealth{VolumeId: volumeID}
	for _, condition := range fit(conditions) {
		described.HealthStatuses = append(described.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{
			Status: severities[condition.Severity], Reason: string(condition.Reason), Message: condition.Message,
		})
	}
	return described
}

// fit returns as much of the conditions, which begin with the worst, as Kubernetes takes.
func fit(conditions []volume.Condition) []volume.Condition {
	fitting := slices.Clone(conditions[:min(len(conditions), maxConditions)])
	for i := range fitting {
		fitting[i].Message = shorten(fitting[i].Message)
	}
	return fitting
}

func shorten(message string) string {
	const cut = " ..."
	message = strings.ToValidUTF8(message, "?") // protobuf takes no other.
	if len(message) <= maxMessage {
		return message
	}
	end := maxMessage - len(cut)
	for !utf8.RuneStart(message[end]) {
		end--
	}
	return message[:end] + cut
}
