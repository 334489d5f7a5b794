// Command rawblock-csi is the CSI plugin of a node: it provisions raw block
// devices there, and gives them to pods. Here are its flags and the wiring of its rooms, and
// nothing else.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
)

// version is set by the linker.
var version = "unknown"

// adminSocket is the name of the admin socket in the state directory.
const adminSocket = "admin.sock"

type flags struct {
	driver.Options
	config        string
	stateDir      string
	verbosity     int
	loggingFormat string
	version       bool
}

func main() {
	err := config.CheckCaller()
	if err == nil {
		err = run(os.Args[1:], os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rawblock-csi:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags, err := parseFlags(args, stderr)
	if err != nil {
		return err
	}
	if flags.version {
		_, err := fmt.Fprintln(stdout, driver.Name, version)
		return err
	}
	if err := startLogging(flags.loggingFormat, flags.verbosity, stderr); err != nil {
		return err
	}
	settings, err := loadSettings(flags.config)
	if err != nil {
		return err
	}
	options := flags.Options
	options.Version, options.Sysfs = version, blockdev.NewSysfs("/sys")
	options.Monitor = health.New(options.Sysfs)
	options.MaxVolumes = int64(settings.MaxVolumes)
	options.ControllerExpansion = settings.ControllerExpansion
	options.Devices = static.New(settings.Devices.Patterns(), options.Sysfs)

	setEncryption(settings.Encryption, program.New(program.HostNamespace), &options)

	if err := options.Check(); err != nil {
		return err
	}
	adminPath := filepath.Join(flags.stateDir, adminSocket)
	if err := checkSockets(options.Endpoint, adminPath); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	lock, err := lockNode(ctx, flags.stateDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	pools, err := openPools(ctx, settings.Pools, options.Sysfs)
	if err != nil {
		return err
	}
	defer pools.close()
	options.Pools, options.Collectors = pools, pools.collectors()
	if options.Publisher, err = newPublisher(ctx, flags.stateDir, options.Sysfs); err != nil {
		return err
	}
	attachments, err := openAttachments(settings.Hotplug, flags.stateDir, &options)
	if err != nil {
		return err
	}
	defer attachments.close()
	operator := newOperator(flags, settings.Pools, attachments, options)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return driver.Run(ctx, options) })
	group.Go(func() error { return attachments.Run(ctx) })
	group.Go(func() error { return admin.Serve(ctx, adminPath, attachments, operator) })
	return group.Wait()
}

// loadSettings reads a configuration file, or returns the defaults where it has no name.
func loadSettings(path string) (settings config.Config, err error) {
	settings = config.Default()
	if path != "" {
		if settings, err = config.Load(path); err != nil {
			return settings, err
		}
	}
	for _, pattern := range settings.Devices.Forgeable() {
		klog.Background().Info("devices.allow has a pattern of links that the content of a disk can decide; whoever writes to a disk can forge them", "pattern", pattern)
	}
	return settings, nil
}

// newPublisher returns the publisher, and clears up what an earlier run has left.
func newPublisher(ctx context.Context, stateDir string, sysfs blockdev.Sysfs) (*publish.Publisher, error) {
	publisher, err := publish.New(stateDir, sysfs)
	if err != nil {
		return nil, err
	}
	if err := publisher.Recover(); err != nil {
		// rawblockctl doctor finds what is left.
		klog.FromContext(ctx).Error(err, "Cannot end the loop devices that an earlier run has left")
	}
	return publisher, nil
}

// flagSet are the flags of the command line, which set f.
func (f *flags) flagSet() *flag.FlagSet {
	set := flag.NewFlagSet("rawblock-csi", flag.ExitOnError)
	set.StringVar(&f.Endpoint, "endpoint", "unix:///var/lib/kubelet/plugins/"+driver.Name+"/csi.sock",
		"unix socket on which to serve CSI; kubelet must see it at the same path")
	set.StringVar(&f.NodeID, "node-id", "", "name of the Kubernetes node (required)")
	set.StringVar(&f.config, "config", "", "node configuration file; empty: the defaults")
	set.StringVar(&f.KubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's --root-dir")
	set.StringVar(&f.stateDir, "state-dir", "/run/rawblock-csi", "directory for records of this boot, and for the admin socket admin.sock; the host's, on a tmpfs")
	set.StringVar(&f.RegistrationDir, "registration-dir", "",
		"kubelet's plugins_registry, where the plugin registers itself; empty: a sidecar does")
	set.StringVar(&f.MetricsAddress, "metrics-address", "", "address for HTTP: /metrics, /healthz and /readyz; empty: off")
	set.IntVar(&f.verbosity, "v", 0, "log verbosity: 2 logs each call, 5 its content")
	set.StringVar(&f.loggingFormat, "logging-format", "text", "log format: text or json")
	set.BoolVar(&f.version, "version", false, "print the version and exit")
	return set
}

func parseFlags(args []string, stderr io.Writer) (flags, error) {
	var f flags
	set := f.flagSet()
	set.SetOutput(stderr)
	if err := set.Parse(args); err != nil {
		return flags{}, err
	}
	if set.NArg() > 0 {
		return flags{}, fmt.Errorf("unexpected argument %q; settings are given as --flag=value", set.Arg(0))
	}
	return f, nil
}

// checkSockets returns an error where the CSI socket is the admin socket: whoever is
// given the one must not have the other.
func checkSockets(endpoint, admin string) error {
	csi := "/" + strings.TrimLeft(strings.TrimPrefix(endpoint, "unix:"), "/")
	for _, path := range []*string{&csi, &admin} {
		// The directory may be a link, as /var/run is, or yet to be made.
		if dir, err := filepath.EvalSymlinks(filepath.Dir(*path)); err == nil {
			*path = filepath.Join(dir, filepath.Base(*path))
		}
	}
	if filepath.Clean(csi) == admin {
		return fmt.Errorf("--endpoint is %s, which is the admin socket in --state-dir; choose another path for one of them", endpoint)
	}
	return nil
}

// startLogging sends klog's lines to w in a format.
func startLogging(format string, verbosity int, w io.Writer) error {
	klogFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(klogFlags)
	for name, value := range map[string]string{"v": fmt.Sprint(verbosity), "logtostderr": "true"} {
		if err := klogFlags.Set(name, value); err != nil {
			return fmt.Errorf("set the log's %s: %w", name, err)
		}
	}
	switch format {
	case "text":
	case "json":
		// logr's verbosity n is slog's level -n.
		handler := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.Level(-verbosity), ReplaceAttr: plainJSON})
		klog.SetSlogLogger(slog.New(handler))
	default:
		return fmt.Errorf("--logging-format is %q; expected text or json", format)
	}
	return nil
}

// plainJSON writes the level as INFO or ERROR, since logr knows no others, and
// durations in seconds, as metrics have them.
func plainJSON(_ []string, attribute slog.Attr) slog.Attr {
	switch value := attribute.Value.Any().(type) {
	case slog.Level:
		if value < slog.LevelError {
			return slog.String(attribute.Key, slog.LevelInfo.String())
		}
	case time.Duration:
		return slog.Float64(attribute.Key, value.Seconds())
	}
	return attribute
}
