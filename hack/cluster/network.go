package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// The machines are on one bridge, on which the host is too. Nothing is routed from
// it to anywhere else. The addresses are private ones (RFC 1918).
const (
	bridge         = "rawblock0"
	hostAddress    = "10.201.0.1"
	controlAddress = "10.201.0.2"
	prefix         = "/24"
	// serviceNetwork has the addresses of Services, and serviceAddress is the API server's.
	serviceNetwork = "10.201.128.0/17"
	serviceAddress = "10.201.128.1"
)

// bridgePlugin is where Debian's containernetworking-plugins puts it.
const (
	pluginDir    = "/usr/lib/cni"
	bridgePlugin = pluginDir + "/bridge"
)

// makeBridge makes the bridge on the host.
func makeBridge(ctx context.Context) error {
	if exists(ctx, bridge) {
		return nil
	}
	return ip(ctx,
		"link add "+bridge+" type bridge",
		"address add "+hostAddress+prefix+" dev "+bridge,
		"link set "+bridge+" up",
	)
}

// removeBridge removes the bridge, and what of the machines is still on it.
func (c *cluster) removeBridge(ctx context.Context) error {
	names := []string{bridge}
	for _, m := range c.machines() {
		names = append(names, m.port())
	}
	var errs []error
	for _, name := range names {
		if !exists(ctx, name) {
			continue
		}
		// The kernel may be about to take it away, with the namespace of its peer.
		if err := ip(ctx, "link delete "+name); err != nil && exists(ctx, name) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func exists(ctx context.Context, link string) bool { return ip(ctx, "link show "+link) == nil }

// ip calls ip(8) on the host, once for each command.
func ip(ctx context.Context, commands ...string) error {
	for _, command := range commands {
		if _, err := output(exec.CommandContext(ctx, "ip", strings.Fields(command)...)); err != nil {
			return err
		}
	}
	return nil
}

// port is the machine's end of the bridge on the host.
func (m machine) port() string { return "rb-" + m.name }

// connect gives the machine its interface, and the routes to the pods of the others.
func (m machine) connect(ctx context.Context) error {
	id, err := readID(m.pidFile())
	if err != nil {
		return err
	}
	// One that is left of a machine that was just halted would be in the way.
	if exists(ctx, m.port()) {
		_ = ip(ctx, "link delete "+m.port()) // The kernel may be faster.
	}
	if err := ip(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", m.port(), id.pid),
		"link set "+m.port()+" master "+bridge,
		"link set "+m.port()+" up",
	); err != nil {
		return err
	}
	commands := []string{
		"ip link set lo up",
		"ip address add " + m.address + prefix + " dev eth0",
		"ip link set eth0 up",
		"ip route add default via " + hostAddress,
		"sysctl -q -w net.ipv4.ip_forward=1",
	}
	for _, other := range m.cluster.nodes() {
		if other.name != m.name {
			commands = append(commands, "ip route add "+other.pods+" via "+other.address)
		}
	}
	for _, line := range commands {
		command, err := m.command(ctx, strings.Fields(line)...)
		if err != nil {
			return err
		}
		if _, err := output(command); err != nil {
			return err
		}
	}
	return nil
}

// podNetwork is what containerd has the CNI plugins do for each pod.
func (m machine) podNetwork() object {
	return object{
		"cniVersion": "0.4.0",
		"name":       "rawblock",
		"plugins": []object{{
			"type":        "bridge",
			"bridge":      "cni0",
			"isGateway":   true,
			"ipMasq":      true,
			"hairpinMode": true,
			"ipam": object{
				"type":   "host-local",
				"ranges": [][]object{{{"subnet": m.pods}}},
				"routes": []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}
