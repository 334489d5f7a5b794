package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// arguments are those of a command of QMP.
type arguments map[string]any

// qmp is the line to QEMU itself: the QEMU Machine Protocol (docs/interop/qmp-spec).
// Commands are made one at a time.
type qmp struct {
	conn    net.Conn
	answers chan message
	mutex   sync.Mutex
	// deleted has the names of devices that the guest has given up.
	deleted map[string]bool
}

// message is whatever QEMU says.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Text  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
	} `json:"data"`
}

// openQMP connects to QEMU on a socket.
func openQMP(ctx context.Context, socket string) (*qmp, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, answers: make(chan message, 1), deleted: map[string]bool{}}
	go q.read()
	return q, q.run(ctx, "qmp_capabilities", nil)
}

// dial connects to a socket that appears in a moment.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (q *qmp) read() {
	defer close(q.answers)
	for decoder := json.NewDecoder(q.conn); ; {
		var m message
		if err := decoder.Decode(&m); err != nil {
			return
		}
		switch {
		case m.Event == "DEVICE_DELETED":
			q.mutex.Lock()
			q.deleted[m.Data.Device] = true
			q.mutex.Unlock()
		case m.Return != nil || m.Error != nil:
			q.answers <- m
		}
	}
}

// run has QEMU execute a command.
func (q *qmp) run(ctx context.Context, command string, args arguments) error {
	if args == nil {
		args = arguments{}
	}
	line, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(line); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case answer, ok := <-q.answers:
		if !ok {
			return fmt.Errorf("%s: QEMU has ended", command)
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %s: %s", command, answer.Error.Class, answer.Error.Text)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

// askAgain is after how long a guest is asked once more for a device. Of some five
// hundred requests of ACPI's hot-plug one is lost where the guest is busy.
const askAgain = 10 * time.Second

// remove takes a device from the machine, and returns once the guest has given it up.
func (q *qmp) remove(ctx context.Context, device string) error {
	request := arguments{"id": device}
	if err := q.run(ctx, "device_del", request); err != nil {
		return err
	}
	var refused error
	for again := time.Now().Add(askAgain); !q.takeDeleted(device); {
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the guest does not give up %s: %w", device, ctx.Err()), refused)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(again) {
			again = time.Now().Add(askAgain)
			refused = q.run(ctx, "device_del", request) // Also where it has just gone.
		}
	}
	return nil
}

// takeDeleted reports, once, that the guest has given up a device.
func (q *qmp) takeDeleted(device string) bool {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	defer delete(q.deleted, device)
	return q.deleted[device]
}
