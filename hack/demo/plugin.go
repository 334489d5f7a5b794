package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// nodeID is what the plugin is told to be the name of its node.
const nodeID = "node-1"

// plugin is the plugin as a process of its own, and the connection to it.
type plugin struct {
	csi.ControllerClient
	csi.NodeClient
	connection *grpc.ClientConn
	process    *os.Process
	// ended is closed when the process has ended, with how in err.
	ended chan struct{}
	err   error
}

func (d *demo) startPlugin(ctx context.Context) error {
	if err := d.startPluginWith(ctx, fmt.Sprintf("pools: [{name: files, file: {directory: %s}}]", d.pool())); err != nil {
		return err
	}
	d.later(d.wantEmpty)
	return nil
}

// startPluginWith starts the plugin with a configuration.
func (d *demo) startPluginWith(ctx context.Context, config string) error {
	d.did("echo '%s' > $DEMO/config.yaml", config)
	if err := os.WriteFile(d.path("config.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(d.path("kubelet"), 0o750); err != nil {
		return err
	}
	if err := d.launch(); err != nil {
		return err
	}
	d.later(d.stopPlugin)
	return d.waitForPlugin(ctx)
}

// launch starts the plugin's process.
func (d *demo) launch() error {
	endpoint := "unix://" + d.path("csi.sock")
	soon := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}}
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(soon))
	if err != nil {
		return err
	}
	log, err := os.Create(d.path("plugin.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(d.binary, "--node-id="+nodeID, "--endpoint="+endpoint, "--config="+d.path("config.yaml"),
		"--kubelet-dir="+d.path("kubelet"), "--state-dir="+d.path("state"))
	command.Stderr = log
	// Ctrl-C is for the demo, which stops the plugin itself.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.did("%s", strings.Join(command.Args, " "))
	if err := command.Start(); err != nil {
		return err
	}
	p := &plugin{csi.NewControllerClient(connection), csi.NewNodeClient(connection), connection, command.Process, make(chan struct{}), nil}
	go func() {
		p.err = command.Wait()
		close(p.ended)
	}()
	d.plugin = p
	return nil
}

// waitForPlugin waits until the plugin answers, or ends.
func (d *demo) waitForPlugin(ctx context.Context) error {
	p := d.plugin
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err := csi.NewIdentityClient(p.connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		log, _ := os.ReadFile(d.path("plugin.log")) // Only to say more.
		return fmt.Errorf("the plugin does not serve: %w\n%s", err, log)
	}
	d.saw("serves as process %d", p.process.Pid)
	return nil
}

// revive starts the plugin again where it has ended before its time. It finds
// its volumes in the directory of the pool, and what is published in the mount table
// and in its records.
func (d *demo) revive(ctx context.Context) error {
	select {
	case <-d.plugin.ended:
	default:
		return nil
	}
	if err := d.launch(); err != nil {
		return err
	}
	return d.waitForPlugin(ctx)
}

// stopPlugin ends the plugin as Kubernetes does. What is published would stay.
func (d *demo) stopPlugin(context.Context) error {
	d.did("kill -TERM %d", d.plugin.process.Pid)
	d.plugin.connection.Close()
	if err := d.plugin.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the plugin: %w", err)
	}
	<-d.plugin.ended
	if d.plugin.err != nil {
		return fmt.Errorf("the plugin ended with: %w", d.plugin.err)
	}
	return nil
}

// path is that of a file of the demo.
func (d *demo) path(names ...string) string {
	return filepath.Join(append([]string{d.dir}, names...)...)
}
