package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ErrUnreachable says that no plugin answers on the socket.
var ErrUnreachable = errors.New("no plugin answers")

// Client calls the plugin. Its methods may be called concurrently. Their errors wrap
// the sentinels of pkg/volume that those of the plugin do, or ErrUnreachable.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the plugin that serves on the socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Attach gives a device to a running container.
func (c *Client) Attach(ctx context.Context, request hotplug.Request) (hotplug.Attachment, error) {
	return call[hotplug.Attachment](ctx, c, http.MethodPost, attachmentsPath, request)
}

// Plan tells what Attach would do.
func (c *Client) Plan(ctx context.Context, request hotplug.Request) (hotplug.Plan, error) {
	return call[hotplug.Plan](ctx, c, http.MethodPost, attachmentsPath+"?"+dryRun, request)
}

// Detach takes a device away from its container. While processes have it open, the
// attachment is returned with the error, and names them.
func (c *Client) Detach(ctx context.Context, id string) (hotplug.Attachment, error) {
	if id == "" {
		return hotplug.Attachment{}, fmt.Errorf("%w: the ID of the attachment is empty", volume.ErrInvalid)
	}
	return call[hotplug.Attachment](ctx, c, http.MethodDelete, attachmentsPath+"/"+url.PathEscape(id), nil)
}

// List returns the attachments of the node, in the order of their IDs.
func (c *Client) List(ctx context.Context) ([]hotplug.Attachment, error) {
	return call[[]hotplug.Attachment](ctx, c, http.MethodGet, attachmentsPath, nil)
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return answer, fmt.Errorf("write the request: %w", err)
	}
	// The name of the host is not looked at.
	request, err := http.NewRequestWithContext(ctx, method, "http://plugin"+path, bytes.NewReader(text))
	if err != nil {
		return answer, fmt.Errorf("write the request: %w", err)
	}
	response, err := c.http.Do(request)
	if ctx.Err() != nil {
		return answer, fmt.Errorf("wait for the plugin: %w", ctx.Err())
	}
	if err != nil {
		return answer, fmt.Errorf("%w on %s; does it run on this node, and is that its socket? %w", ErrUnreachable, c.socket, err)
	}
	defer response.Body.Close() //nolint:errcheck // What was read counts.
	text, err = io.ReadAll(response.Body)
	if err != nil {
		return answer, fmt.Errorf("read the plugin's answer: %w", err)
	}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, &answer); err != nil {
			return answer, fmt.Errorf("read the plugin's answer: %w", err)
		}
		return answer, nil
	}
	var failed failure
	if err := json.Unmarshal(text, &failed); err != nil || failed.Message == "" {
		return answer, fmt.Errorf("the plugin answers %s: %s", response.Status, bytes.TrimSpace(text))
	}
	if attachment, ok := any(&answer).(*hotplug.Attachment); ok && failed.Attachment != nil {
		*attachment = *failed.Attachment
	}
	return answer, failed.err()
}
