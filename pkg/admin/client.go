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

// ErrUnreachable says that no plugin answers on the socket. It is a
// volume.ErrPrecondition.
var ErrUnreachable = fmt.Errorf("%w: no plugin answers", volume.ErrPrecondition)

// Client calls the plugin. Its methods may be called concurrently. Their errors wrap
// the sentinels of pkg/volume that those of the plugin do, or ErrUnreachable, or the
// error of the context. Where the answer does not arrive, what was asked for may have
// been done; all calls may be repeated.
type Client struct{ http *http.Client }

// NewClient returns a client of the plugin that serves on the socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("%w on %s; does it run on this node, and is that its socket? %w", ErrUnreachable, socket, err)
		}
		return conn, nil
	}
	return &Client{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
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
// error is a volume.ErrInUse, and comes with the attachment, which names them.
func (c *Client) Detach(ctx context.Context, id string) (hotplug.Attachment, error) {
	return c.end(ctx, id, "")
}

// Revoke takes it also from the processes that have it open. Where that cannot be, the
// error comes with the attachment.
func (c *Client) Revoke(ctx context.Context, id string) (hotplug.Attachment, error) {
	return c.end(ctx, id, "?"+force)
}

func (c *Client) end(ctx context.Context, id, query string) (hotplug.Attachment, error) {
	if id == "" || id == "." || id == ".." {
		// As parts of a path these are nothing, and other paths.
		return hotplug.Attachment{}, fmt.Errorf("%w: attachment %q; the IDs are those of the list", volume.ErrInvalid, id)
	}
	return call[hotplug.Attachment](ctx, c, http.MethodDelete, attachmentsPath+"/"+url.PathEscape(id)+query, nil)
}

// List returns the attachments of the node, in the order of their IDs.
func (c *Client) List(ctx context.Context) ([]hotplug.Attachment, error) {
	return call[[]hotplug.Attachment](ctx, c, http.MethodGet, attachmentsPath, nil)
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (answer T, err error) {
	status, text, err := c.send(ctx, method, path, body)
	if err != nil {
		return answer, err
	}
	if status == http.StatusOK {
		if err := json.Unmarshal(text, &answer); err != nil {
			return answer, fmt.Errorf("read the plugin's answer: %w", err)
		}
		return answer, nil
	}
	var failed failure
	if err := json.Unmarshal(text, &failed); err != nil || failed.Message == "" {
		return answer, fmt.Errorf("the plugin answers %d %s: %s", status, http.StatusText(status), bytes.TrimSpace(text))
	}
	if attachment, ok := any(&answer).(*hotplug.Attachment); ok && failed.Attachment != nil {
		*attachment = *failed.Attachment
	}
	return answer, failed.err()
}

// send sends a request, with a body unless it is nil, and returns the status and the
// text of the answer.
func (c *Client) send(ctx context.Context, method, path string, body any) (status int, text []byte, err error) {
	var content io.Reader
	if body != nil {
		written, err := json.Marshal(body)
		if err != nil {
			return 0, nil, fmt.Errorf("write the request: %w", err)
		}
		content = bytes.NewReader(written)
	}
	// The name of the host is not looked at.
	request, err := http.NewRequestWithContext(ctx, method, "http://plugin"+path, content)
	if err != nil {
		return 0, nil, fmt.Errorf("write the request: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, nil, explain(ctx, err)
	}
	defer response.Body.Close() //nolint:errcheck // What was read counts.
	if text, err = io.ReadAll(response.Body); err != nil {
		return 0, nil, explain(ctx, err)
	}
	return response.StatusCode, text, nil
}

// explain says what it means that there is no answer.
func explain(ctx context.Context, err error) error {
	// The name of the host and the method say nothing to who reads it.
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("wait for the plugin's answer: %w; what was asked for may have been done: see the list, or repeat it", err)
}
