package main

import (
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/luks"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
)

// setEncryption lets the plugin open encrypted volumes, with the programs of the host
// and the keys that the node has.
func setEncryption(settings config.Encryption, host *program.Host, options *driver.Options) {
	options.Encryption = luks.New(host, options.Sysfs, luks.Argon2id)
	if settings.KeyDirectory != "" {
		options.Keys = luks.KeyDirectory(settings.KeyDirectory)
	}
}
