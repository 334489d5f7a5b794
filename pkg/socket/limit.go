package socket

import (
	"net"
	"sync"
)

// Limit returns a listener that has no more than n of its connections open at once. Who
// comes then waits in the kernel's queue (listen(2)) until one is closed.
func Limit(listener net.Listener, n int) net.Listener {
	return &limited{Listener: listener, places: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept waits for a place, and then for a connection. It ends when the listener is closed.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &counted{Conn: conn, free: sync.OnceFunc(func() { <-l.places })}, nil
}

// Close closes the listener, and ends those who wait.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// counted is a connection that has a place.
type counted struct {
	net.Conn
	free func()
}

// Close closes the connection and gives its place up.
func (c *counted) Close() error {
	defer c.free()
	return c.Conn.Close()
}
