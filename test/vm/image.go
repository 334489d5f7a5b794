package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// packages are the Debian packages of the guest, which come with all that they
// depend on. They are unpacked and not installed, so their scripts do not run.
var packages = []string{
	"linux-image-cloud-amd64", "kmod", "udev", "systemd", "systemd-sysv",
	"base-files", "base-passwd", "bash", "coreutils", "util-linux", "mount", "procps", "grep", "sed", "mawk",
	"busybox-static", "runc",
	"lvm2", "dmsetup", "thin-provisioning-tools", "cryptsetup-bin", "mdadm", "multipath-tools",
	"e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools", "fdisk", "gdisk", "strace",
}

// bootModules are the kernel modules without which the root disk is not seen.
var bootModules = []string{"virtio_pci", "virtio_blk", "ext4"}

// recipe is part of the name of an image: change it with how one is made.
const recipe = "3"

// rootSize is the size of the guest's root disk in bytes. The file is sparse.
const rootSize = 2 << 30

// image is what a guest boots from, but for the agent.
type image struct {
	// kernel is the kernel.
	kernel string
	// root is the root disk.
	root string
	// modules is a directory of the modules to load before the root disk, by order.
	modules string
}

// openImage returns the image, which is made at the first use and whenever Debian
// has other versions of its packages.
func openImage(ctx context.Context) (image, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return image{}, err
	}
	cache = filepath.Join(cache, "rawblock-csi", "vm")
	archives, none := filepath.Join(cache, "archives"), filepath.Join(cache, "none")
	for _, dir := range []string{archives, none} {
		if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
			return image{}, err
		}
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return image{}, err
	}
	defer unlock()
	// What has been downloaded is not printed, so this looks into an empty directory.
	uris, err := apt(ctx, none, "--print-uris")
	if err != nil {
		return image{}, err
	}
	names := archiveNames(uris)
	sum := sha256.Sum256([]byte(recipe + "\n" + strings.Join(names, "\n")))
	dir := filepath.Join(cache, hex.EncodeToString(sum[:8]))
	made := image{kernel: filepath.Join(dir, "kernel"), root: filepath.Join(dir, "root.ext4"), modules: filepath.Join(dir, "modules")}
	if _, err := os.Stat(dir); err == nil {
		return made, nil
	}
	if _, err := apt(ctx, archives, "--download-only"); err != nil {
		return image{}, err
	}
	return made, makeImage(ctx, archives, names, dir)
}

// apt resolves the packages as on a machine that has none, and returns what it
// printed.
func apt(ctx context.Context, archives, what string) ([]byte, error) {
	args := []string{
		"-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache::archives=" + archives,
		"-o", "APT::Install-Recommends=false", "-o", "Debug::NoLocking=1", "-qq", "-y", what, "install",
	}
	return output(exec.CommandContext(ctx, "apt-get", append(args, packages...)...))
}

// printed is a line of apt-get --print-uris: the address, and the file's name.
var printed = regexp.MustCompile(`(?m)^'[^']*' (\S+\.deb) `)

func archiveNames(uris []byte) []string {
	var names []string
	for _, match := range printed.FindAllSubmatch(uris, -1) {
		names = append(names, string(match[1]))
	}
	return names
}

// makeImage makes an image in a directory, which appears once it is whole.
func makeImage(ctx context.Context, archives string, names []string, dir string) error {
	work, err := os.MkdirTemp(filepath.Dir(dir), "making")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := unpack(ctx, archives, names, root); err != nil {
		return err
	}
	made := filepath.Join(work, "made")
	if err := os.MkdirAll(filepath.Join(made, "modules"), 0o755); err != nil {
		return err
	}
	if err := takeKernel(ctx, root, made); err != nil {
		return err
	}
	if err := configure(root); err != nil {
		return err
	}
	disk := filepath.Join(made, "root.ext4")
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(disk, rootSize); err != nil {
		return err
	}
	if _, err := output(exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m0", "-O", "^has_journal", "-d", root, disk)); err != nil {
		return err
	}
	return os.Rename(made, dir)
}

// unpack unpacks packages into a root directory.
func unpack(ctx context.Context, archives string, names []string, root string) error {
	// Debian's packages expect these links, which only an installer makes.
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := unpackOne(ctx, filepath.Join(archives, name), root); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	return nil
}

// unpackOne is dpkg-deb --extract, but keeps links to directories.
func unpackOne(ctx context.Context, archive, root string) error {
	files := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", archive)
	unpack := exec.CommandContext(ctx, "tar", "--extract", "--preserve-permissions", "--keep-directory-symlink", "--directory", root)
	pipe, err := files.StdoutPipe()
	if err != nil {
		return err
	}
	unpack.Stdin = pipe
	if err := files.Start(); err != nil {
		return err
	}
	_, err = output(unpack)
	return errors.Join(err, files.Wait())
}

// takeKernel copies the kernel and the modules that it needs at first.
func takeKernel(ctx context.Context, root, made string) error {
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	if len(kernels) != 1 {
		return fmt.Errorf("expected one kernel in the packages, found %q", kernels)
	}
	if err := os.Rename(kernels[0], filepath.Join(made, "kernel")); err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if _, err := output(exec.CommandContext(ctx, "chroot", root, "depmod", release)); err != nil {
		return err
	}
	listed, err := output(exec.CommandContext(ctx, "chroot", append([]string{root, "modprobe", "-S", release, "--show-depends", "-a"}, bootModules...)...))
	if err != nil {
		return err
	}
	for number, line := range strings.Split(strings.TrimSpace(string(listed)), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "insmod" {
			continue // Built in.
		}
		data, err := os.ReadFile(filepath.Join(root, fields[1]))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%03d-%s", number, filepath.Base(fields[1]))
		if err := os.WriteFile(filepath.Join(made, "modules", name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// files are what the packages' scripts would have made, and the agent's unit.
var files = map[string]string{
	"etc/fstab":       "",
	"etc/hostname":    "guest\n",
	"etc/machine-id":  "0123456789abcdef0123456789abcdef\n",
	"etc/mdadm.conf":  "AUTO -all\n",
	"etc/resolv.conf": "",
	"etc/systemd/system/guest-agent.service": `[Unit]
Description=What the host tells this guest to do
After=systemd-udev-trigger.service systemd-tmpfiles-setup.service

[Service]
ExecStart=/run/agent serve
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Environment=HOME=/root

[Install]
WantedBy=multi-user.target
`,
}

// configure finishes a root directory.
func configure(root string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"passwd", "group"} {
		data, err := os.ReadFile(filepath.Join(root, "usr/share/base-passwd", name+".master"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), data, 0o644); err != nil {
			return err
		}
	}
	// The shell that dash's scripts would choose.
	if err := os.Symlink("bash", filepath.Join(root, "usr/bin/sh")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.Symlink("../guest-agent.service", filepath.Join(wants, "guest-agent.service")); err != nil {
		return err
	}
	target := filepath.Join(root, "etc/systemd/system/default.target")
	return os.Symlink("/lib/systemd/system/multi-user.target", target)
}

// output runs a command and returns what it printed; what it complained about is
// in the error.
func output(command *exec.Cmd) ([]byte, error) {
	var complaints bytes.Buffer
	command.Stderr = &complaints
	printed, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(command.Path), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return printed, nil
}
