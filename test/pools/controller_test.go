package pools

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// newPlugin serves the plugin with one pool of files, called pool.
func newPlugin(t *testing.T, filesystem string) *rig.Plugin {
	t.Helper()
	return rig.NewPlugin(t, map[string]driver.Pool{"pool": newPool(t, filesystem)})
}

func newPool(t *testing.T, filesystem string) *file.Pool {
	t.Helper()
	options := file.Options{Directory: rig.Filesystem(t, filesystem, 320*rig.MiB), Capacity: 64 * rig.MiB}
	pool, err := file.New(t.Context(), "pool", options, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// create makes a volume and returns its paths. It is taken down with the test.
func create(t *testing.T, plugin *rig.Plugin, request *csi.CreateVolumeRequest) *rig.Volume {
	t.Helper()
	response, err := plugin.CreateVolume(rig.Context(t), request)
	rig.Must(t, err)
	v := plugin.Provisioned(t, response.GetVolume().GetVolumeId())
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		targets, err := filepath.Glob(filepath.Join(filepath.Dir(v.Target(t, "pod")), "*"))
		rig.Must(t, err)
		for _, target := range targets {
			rig.Must(t, v.Unpublish(ctx, target))
		}
		rig.Must(t, v.Unstage(ctx))
	})
	return v
}

func TestCreateVolumeRequestsThatAreRefused(t *testing.T) {
	plugin := newPlugin(t, "xfs")
	create(t, plugin, createRequest("taken", size))
	mount := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	elsewhere := &csi.Topology{Segments: map[string]string{"topology.rawblock.dev/node": "node-2"}}
	for about, test := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		says   string
	}{
		"no name":           {func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name is missing"},
		"no capability":     {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "volume_capabilities is missing"},
		"filesystem":        {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = mount }, codes.InvalidArgument, "volumeMode: Block"},
		"several nodes":     {mode(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), codes.InvalidArgument, "ReadWriteOnce"},
		"readers elsewhere": {mode(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY), codes.InvalidArgument, "readOnly: true in the pod"},
		"unknown mode":      {mode(csi.VolumeCapability_AccessMode_UNKNOWN), codes.InvalidArgument, "UNKNOWN"},
		"negative size":     {sizes(-1, 0), codes.InvalidArgument, "required_bytes -1"},
		"limit below":       {sizes(2, 1), codes.InvalidArgument, "limit_bytes is 1"},
		"odd limit":         {sizes(4097, 8191), codes.OutOfRange, "from 4097 to 8191 bytes"},
		"too large":         {sizes(1<<50, 0), codes.OutOfRange, "more than pool pool can hold"},
		"no space":          {sizes(60*rig.MiB, 0), codes.ResourceExhausted, "bytes left on this node"},
		"unknown parameter": {parameter("Thin", "true"), codes.InvalidArgument, `"Thin" is unknown to a pool of files; it reads thin and blockSize`},
		"wrong thin":        {parameter("thin", "yes"), codes.InvalidArgument, `expected "true" or "false"`},
		"wrong block size":  {parameter("blockSize", "4K"), codes.InvalidArgument, `expected "512" or "4096"`},
		"odd block size":    {parameter("blockSize", "1024"), codes.InvalidArgument, `expected "512" or "4096"`},
		"another pool":      {parameter("pool", "nvme"), codes.ResourceExhausted, `no pool "nvme"`},
		"attributes class":  {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"iops": "1"} }, codes.InvalidArgument, "mutable_parameters"},
		"another node": {
			func(r *csi.CreateVolumeRequest) { r.AccessibilityRequirements.Requisite = []*csi.Topology{elsewhere} },
			codes.ResourceExhausted, "do not allow node " + rig.NodeID,
		},
		"snapshot unknown":     {source(fromSnapshot("pool/never@" + rig.NodeID)), codes.NotFound, "snapshot never"},
		"snapshot of others":   {source(fromSnapshot("some-snapshot")), codes.NotFound, "not known to this driver"},
		"snapshot elsewhere":   {source(fromSnapshot("pool/never@node-2")), codes.ResourceExhausted, "is on node node-2"},
		"volume elsewhere":     {source(fromVolume("pool/never@node-2")), codes.ResourceExhausted, "is on node node-2"},
		"source of no kind":    {source(&csi.VolumeContentSource{}), codes.InvalidArgument, "neither a snapshot nor a volume"},
		"source in other pool": {source(fromVolume("nvme/taken@" + rig.NodeID)), codes.InvalidArgument, "another pool"},
		"taken, larger":        {func(r *csi.CreateVolumeRequest) { r.Name = "taken"; r.CapacityRange.RequiredBytes = 2 * size }, codes.AlreadyExists, "taken has 8388608 bytes"},
		"taken, thin":          {func(r *csi.CreateVolumeRequest) { r.Name = "taken"; r.Parameters["thin"] = "true" }, codes.AlreadyExists, "thin=false"},
		"taken, 4 KiB":         {func(r *csi.CreateVolumeRequest) { r.Name = "taken"; r.Parameters["blockSize"] = "4096" }, codes.AlreadyExists, "blockSize=512"},
		"taken, a copy": {
			func(r *csi.CreateVolumeRequest) {
				r.Name = "taken"
				r.VolumeContentSource = fromVolume("pool/taken@" + rig.NodeID)
			}, codes.AlreadyExists, "was made from",
		},
	} {
		t.Run(about, func(t *testing.T) {
			request := createRequest(name, size)
			test.change(request)
			_, err := plugin.CreateVolume(rig.Context(t), request)
			wantCode(t, err, test.code)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want the words %q", err, test.says)
			}
		})
	}
	if got := list(t, plugin); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
}

func mode(mode csi.VolumeCapability_AccessMode_Mode) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = append(r.VolumeCapabilities, block(mode)) }
}

func sizes(required, limit int64) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	}
}

func parameter(key, value string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.Parameters[key] = value }
}

func source(source *csi.VolumeContentSource) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = source }
}

func list(t *testing.T, plugin *rig.Plugin) (ids []string) {
	t.Helper()
	response, err := plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{})
	rig.Must(t, err)
	for _, entry := range response.GetEntries() {
		ids = append(ids, entry.GetVolume().GetVolumeId())
	}
	return ids
}

// What is handed out says where it is, and how large it is to the byte.
func TestCreateVolume(t *testing.T) {
	plugin := newPlugin(t, "xfs")
	response, err := plugin.CreateVolume(rig.Context(t), createRequest(name, size+1))
	rig.Must(t, err)
	want := &csi.Volume{
		VolumeId: "pool/" + name + "@" + rig.NodeID, CapacityBytes: size + 4096, AccessibleTopology: []*csi.Topology{here()},
	}
	if !proto.Equal(response.GetVolume(), want) {
		t.Errorf("got %v, want %v", response.GetVolume(), want)
	}
	got, err := plugin.ControllerGetVolume(rig.Context(t), &csi.ControllerGetVolumeRequest{VolumeId: want.GetVolumeId()})
	if err != nil || !proto.Equal(got.GetVolume(), want) {
		t.Errorf("got %v, %v", got, err)
	}
	// The pool may be left out where there is one.
	request := createRequest("another", size)
	delete(request.Parameters, "pool")
	if response, err := plugin.CreateVolume(rig.Context(t), request); err != nil || response.GetVolume().GetVolumeId() != "pool/another@"+rig.NodeID {
		t.Errorf("got %v, %v", response, err)
	}
}

func TestDeleteVolume(t *testing.T) {
	plugin := newPlugin(t, "xfs")
	remove := func(id string) error {
		_, err := plugin.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: id})
		return err
	}
	for id, code := range map[string]codes.Code{
		"":                              codes.InvalidArgument,
		"disk-1":                        codes.OK, // No pool gives out such an ID.
		"pool/never@" + rig.NodeID:      codes.OK,
		"pool/never@node-2":             codes.FailedPrecondition, // It may exist there.
		"nvme/never@" + rig.NodeID:      codes.FailedPrecondition, // It may exist there.
		"nvme/never@node-2":             codes.FailedPrecondition,
		"pool/../../../x@" + rig.NodeID: codes.OK,
	} {
		if err := remove(id); status.Code(err) != code {
			t.Errorf("%q: got %v, want %s", id, err, code)
		}
	}

	v, ctx := create(t, plugin, createRequest(name, size)), rig.Context(t)
	target := v.Target(t, "pod-1")
	rig.Must(t, v.Stage(ctx))
	rig.Must(t, v.Publish(ctx, target))
	err := remove(v.ID)
	wantCode(t, err, codes.FailedPrecondition)
	if err == nil || !strings.Contains(err.Error(), "is published at "+target) {
		t.Errorf("got %v", err)
	}
	rig.Must(t, v.Unpublish(ctx, target))
	// Kubelet may have forgotten to unstage it, but nobody uses it.
	rig.Must(t, remove(v.ID))
	rig.Must(t, v.Unstage(ctx))
	if got := list(t, plugin); len(got) != 0 {
		t.Errorf("there are %v", got)
	}
}

func TestValidateVolumeCapabilities(t *testing.T) {
	plugin := newPlugin(t, "xfs")
	v := create(t, plugin, createRequest(name, size))
	validate := func(id string, capabilities ...*csi.VolumeCapability) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return plugin.ValidateVolumeCapabilities(rig.Context(t), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: capabilities})
	}
	for _, mode := range []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	} {
		if response, err := validate(v.ID, block(mode)); err != nil || len(response.GetConfirmed().GetVolumeCapabilities()) != 1 {
			t.Errorf("%s: %v, %v", mode, response, err)
		}
	}
	response, err := validate(v.ID, block(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER))
	if err != nil || response.GetConfirmed() != nil || !strings.Contains(response.GetMessage(), "one node") {
		t.Errorf("several nodes: %v, %v", response, err)
	}
	_, err = validate(v.ID)
	wantCode(t, err, codes.InvalidArgument)
	_, err = validate("pool/never@"+rig.NodeID, block(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER))
	wantCode(t, err, codes.NotFound)
}

func TestGetCapacity(t *testing.T) {
	plugin := newPlugin(t, "ext4")
	capacity := func(request *csi.GetCapacityRequest) *csi.GetCapacityResponse {
		t.Helper()
		response, err := plugin.GetCapacity(rig.Context(t), request)
		rig.Must(t, err)
		return response
	}
	empty := capacity(&csi.GetCapacityRequest{Parameters: map[string]string{"pool": "pool"}, AccessibleTopology: here()})
	if empty.GetAvailableCapacity() != 64*rig.MiB || empty.GetMaximumVolumeSize().GetValue() != 64*rig.MiB || empty.GetMinimumVolumeSize().GetValue() != 4096 {
		t.Errorf("of an empty pool: %v", empty)
	}
	create(t, plugin, createRequest(name, size))
	if got := capacity(&csi.GetCapacityRequest{}); got.GetAvailableCapacity() != 56*rig.MiB {
		t.Errorf("beside a volume: %v", got)
	}
	for about, request := range map[string]*csi.GetCapacityRequest{
		"another node":  {AccessibleTopology: &csi.Topology{Segments: map[string]string{"topology.rawblock.dev/node": "node-2"}}},
		"another key":   {AccessibleTopology: &csi.Topology{Segments: map[string]string{"zone": "a"}}},
		"another pool":  {Parameters: map[string]string{"pool": "nvme"}},
		"several nodes": {VolumeCapabilities: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}},
	} {
		if got := capacity(request); got.GetAvailableCapacity() != 0 || got.GetMaximumVolumeSize().GetValue() != 0 {
			t.Errorf("%s: %v", about, got)
		}
	}
	_, err := plugin.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{Parameters: map[string]string{"thin": "maybe"}})
	wantCode(t, err, codes.InvalidArgument)
}

// What is made and removed between two pages neither hides nor doubles another.
func TestPages(t *testing.T) {
	plugin := newPlugin(t, "xfs")
	for i := range 5 {
		create(t, plugin, createRequest(fmt.Sprintf("v%d", i), rig.MiB))
	}
	var got []string
	next := ""
	for i := 0; ; i++ {
		response, err := plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: next})
		rig.Must(t, err)
		for _, entry := range response.GetEntries() {
			got = append(got, entry.GetVolume().GetVolumeId()[:len("pool/vX")])
		}
		if next = response.GetNextToken(); next == "" {
			break
		}
		if i == 0 {
			_, err := plugin.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: next})
			rig.Must(t, err)
			create(t, plugin, createRequest("v0a", rig.MiB))
		}
	}
	if strings.Join(got, " ") != "pool/v0 pool/v1 pool/v3 pool/v4" {
		t.Errorf("listed %v", got)
	}
	_, err := plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{StartingToken: "2"})
	wantCode(t, err, codes.Aborted)
	_, err = plugin.ListVolumes(rig.Context(t), &csi.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, err, codes.InvalidArgument)
}

func TestSeveralPools(t *testing.T) {
	plugin := rig.NewPlugin(t, map[string]driver.Pool{"a": newPool(t, "ext4"), "b": newPool(t, "xfs")})
	request := createRequest(name, size)
	request.Parameters = map[string]string{}
	_, err := plugin.CreateVolume(rig.Context(t), request)
	wantCode(t, err, codes.InvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "set it to one of: a, b") {
		t.Errorf("got %v", err)
	}
	for _, pool := range []string{"b", "a"} {
		request.Parameters["pool"] = pool
		create(t, plugin, request)
	}
	if got := strings.Join(list(t, plugin), " "); got != "a/"+name+"@"+rig.NodeID+" b/"+name+"@"+rig.NodeID {
		t.Errorf("listed %s", got)
	}
}

// Without pools there is no Controller service, and nothing is said of one.
func TestNoPools(t *testing.T) {
	plugin := rig.NewPlugin(t, nil)
	_, err := plugin.CreateVolume(rig.Context(t), createRequest(name, size))
	wantCode(t, err, codes.Unimplemented)
	response, err := plugin.GetPluginCapabilities(rig.Context(t), &csi.GetPluginCapabilitiesRequest{})
	rig.Must(t, err)
	for _, capability := range response.GetCapabilities() {
		if capability.GetService().GetType() == csi.PluginCapability_Service_CONTROLLER_SERVICE {
			t.Error("a Controller service is announced")
		}
	}
}
