package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Node is what an administrator sees of a node, and mends there. Its methods may be
// called concurrently.
type Node interface {
	// Status returns what there is on the node.
	Status(ctx context.Context) (inspect.Node, error)
	// Chain returns the whole way of a volume. Errors: volume.ErrNotFound;
	// volume.ErrInvalid where several volumes could be meant.
	Chain(ctx context.Context, volumeID string) (inspect.Chain, error)
	// Findings returns what is left over or wrong.
	Findings(ctx context.Context) ([]doctor.Finding, error)
	// Fix mends a finding. Errors: volume.ErrNotFound, volume.ErrPrecondition,
	// volume.ErrInUse, volume.ErrAborted.
	Fix(ctx context.Context, id string) (doctor.Finding, error)
	// Release removes a volume that nobody uses. Errors: volume.ErrNotFound,
	// volume.ErrInUse, volume.ErrPrecondition, volume.ErrAborted.
	Release(ctx context.Context, volumeID string) error
}

// The client has the same methods as what it calls.
var _ Node = (*Client)(nil)

// The paths of what concerns the node as a whole.
const (
	statusPath   = "/v1/status"
	chainPath    = "/v1/chain"
	findingsPath = "/v1/findings"
	fixSuffix    = "/fix"
	releasePath  = "/v1/release"
	volumeQuery  = "volume"
)

// releaseRequest asks for a volume to be removed.
type releaseRequest struct {
	Volume string `json:"volume"`
}

// handleNode adds what concerns the node.
func handleNode(mux *http.ServeMux, node Node) {
	mux.Handle("GET "+statusPath, handle("Status", func(r *http.Request) (any, error) {
		return node.Status(r.Context())
	}))
	mux.Handle("GET "+chainPath, handle("Chain", func(r *http.Request) (any, error) {
		values, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil || len(values) != 1 || len(values[volumeQuery]) != 1 {
			return nil, fmt.Errorf("%w: the query is %q; expected %s=ID", volume.ErrInvalid, r.URL.RawQuery, volumeQuery)
		}
		return node.Chain(r.Context(), values.Get(volumeQuery))
	}))
	mux.Handle("GET "+findingsPath, handle("Findings", func(r *http.Request) (any, error) {
		found, err := node.Findings(r.Context())
		if found == nil {
			found = []doctor.Finding{} // JSON has it as [] then, not null.
		}
		return found, err
	}))
	mux.Handle("POST "+findingsPath+"/{id}"+fixSuffix, handle("Fix", func(r *http.Request) (any, error) {
		return node.Fix(r.Context(), r.PathValue("id"))
	}))
	mux.Handle("POST "+releasePath, handle("Release", func(r *http.Request) (any, error) {
		request, err := readRelease(r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, node.Release(r.Context(), request.Volume)
	}))
}

func readRelease(r *http.Request) (releaseRequest, error) {
	var request releaseRequest
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return request, fmt.Errorf("%w: read the request: %s", volume.ErrInvalid, err.Error())
	}
	return request, nil
}

// Status returns what there is on the node.
func (c *Client) Status(ctx context.Context) (inspect.Node, error) {
	return call[inspect.Node](ctx, c, http.MethodGet, statusPath, nil)
}

// Chain returns the whole way of a volume.
func (c *Client) Chain(ctx context.Context, volumeID string) (inspect.Chain, error) {
	return call[inspect.Chain](ctx, c, http.MethodGet, chainPath+"?"+url.Values{volumeQuery: {volumeID}}.Encode(), nil)
}

// Findings returns what is left over or wrong.
func (c *Client) Findings(ctx context.Context) ([]doctor.Finding, error) {
	return call[[]doctor.Finding](ctx, c, http.MethodGet, findingsPath, nil)
}

// Fix mends a finding.
func (c *Client) Fix(ctx context.Context, id string) (doctor.Finding, error) {
	return call[doctor.Finding](ctx, c, http.MethodPost, findingsPath+"/"+url.PathEscape(id)+fixSuffix, nil)
}

// Release removes a volume that nobody uses.
func (c *Client) Release(ctx context.Context, volumeID string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, releasePath, releaseRequest{volumeID})
	return err
}
