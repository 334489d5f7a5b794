package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
	"github.com/rawblock-csi/rawblock-csi/test/vm/wire"
)

// serve does what the host says, one thing after the other.
func serve() error {
	if err := prepare(); err != nil {
		return err
	}
	requests, err := openPort(wire.MachinePort)
	if err != nil {
		return err
	}
	if err := passOn(requests); err != nil {
		return err
	}
	port, err := openPort(wire.CommandPort)
	if err != nil {
		return err
	}
	decoder, encoder := gob.NewDecoder(port), gob.NewEncoder(port)
	if err := encoder.Encode(wire.Answer{Done: true}); err != nil {
		return err
	}
	for {
		var command wire.Command
		if err := decoder.Decode(&command); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		if err := encoder.Encode(execute(command, encoder)); err != nil {
			return fmt.Errorf("write to the host: %w", err)
		}
	}
}

// openPort opens a line to the host by its name. There are links with the names
// only where udev runs.
func openPort(name string) (*os.File, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("there is no port %s", name)
}

// execute does what a command says and returns how it ended.
func execute(command wire.Command, encoder *gob.Encoder) wire.Answer {
	if command.File != "" {
		return answer(store(command))
	}
	program := exec.Command(command.Args[0], command.Args[1:]...)
	program.Env, program.Dir = append(environment, command.Environment...), command.Dir
	// One writer for both, so that the lines keep their order.
	output := &sender{encoder: encoder}
	program.Stdout, program.Stderr = output, output
	return answer(program.Run())
}

func answer(err error) wire.Answer {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return wire.Answer{Done: true, Status: exit.String()}
	case err != nil:
		return wire.Answer{Done: true, Status: err.Error()}
	}
	return wire.Answer{Done: true}
}

// store adds to a file, or begins it.
func store(command wire.Command) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if command.Begins {
		if err := os.MkdirAll(filepath.Dir(command.File), 0o755); err != nil {
			return err
		}
		flags |= os.O_TRUNC
	}
	file, err := os.OpenFile(command.File, flags, 0o755)
	if err != nil {
		return err
	}
	_, err = file.Write(command.Data)
	return errors.Join(err, file.Close())
}

// sender sends what is written to it to the host.
type sender struct{ encoder *gob.Encoder }

func (s *sender) Write(data []byte) (int, error) {
	if err := s.encoder.Encode(wire.Answer{Output: data}); err != nil {
		return 0, err
	}
	return len(data), nil
}

// passOn passes the requests that are made on machine.Socket on to the host.
func passOn(port io.ReadWriter) error {
	listener, err := net.Listen("unix", machine.Socket)
	if err != nil {
		return err
	}
	line := &line{decoder: gob.NewDecoder(port), encoder: gob.NewEncoder(port)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if err := line.pass(conn); err != nil {
					fmt.Fprintln(os.Stderr, "agent:", err)
				}
			}()
		}
	}()
	return nil
}

// line is the one way to the machine.
type line struct {
	mutex   sync.Mutex
	decoder *gob.Decoder
	encoder *gob.Encoder
}

func (l *line) pass(conn net.Conn) error {
	var request machine.Request
	if err := gob.NewDecoder(conn).Decode(&request); err != nil {
		return err
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	var reply machine.Reply
	if err := l.encoder.Encode(request); err != nil {
		return err
	}
	if err := l.decoder.Decode(&reply); err != nil {
		return err
	}
	return gob.NewEncoder(conn).Encode(reply)
}
