// Package admin is the socket between a node's administrator and the plugin: HTTP
// with JSON on a unix socket that only root may use, and never the CSI socket.
//
// Rules of this room. A call is one method of what it is given, and nothing is
// decided here. Requests are read strictly: a field that is not known is an error,
// so that a misspelt one is not taken for its default. An error keeps the sentinel
// of pkg/volume that it wraps on its way to the client.
package admin
