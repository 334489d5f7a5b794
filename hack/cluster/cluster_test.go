package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

// TestVersions sees that the sidecars that are built are those that the manifests ask for.
func TestVersions(t *testing.T) {
	rendered, err := os.ReadFile("../../deploy/testdata/rendered-snapshots.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, p := range programs {
		made = append(made, p.image+":"+p.version)
	}
	asked := imagesOf(rendered)
	if len(asked) != 4 {
		t.Errorf("there are %d images in %s, want the plugin's and those of three sidecars: %q", len(asked), "rendered-snapshots.yaml", asked)
	}
	for _, name := range asked {
		if name != "ghcr.io/rawblock-csi/rawblock-csi:v0.1.0" && !slices.Contains(made, name) {
			t.Errorf("the manifests ask for %s; versions.go has %q", name, made)
		}
	}
}

func TestImagesOf(t *testing.T) {
	const manifest = `
      - image: b:1
        imagePullPolicy: Never
        image: a:2
        name: image: c
        image: b:1
`
	if got, want := imagesOf([]byte(manifest)), []string{"a:2", "b:1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestReadID sees that a process is not taken for another one with its number.
func TestReadID(t *testing.T) {
	sleep := exec.Command("sleep", "infinity")
	sleep.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	go sleep.Wait()
	t.Cleanup(func() { sleep.Process.Kill() })
	pid := strconv.Itoa(sleep.Process.Pid)
	file := filepath.Join(t.TempDir(), "pid")

	if _, err := readID(file); !errors.Is(err, errNotRunning) {
		t.Errorf("without a file: %v, want %v", err, errNotRunning)
	}
	if err := writeID(file, pid); err != nil {
		t.Fatal(err)
	}
	if got, err := readID(file); err != nil || got.pid != sleep.Process.Pid {
		t.Errorf("while it runs: %+v, %v, want process %s", got, err, pid)
	}
	other := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(other, []byte(pid+" 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readID(other); !errors.Is(err, errNotRunning) {
		t.Errorf("of one that started at another time: %v, want %v", err, errNotRunning)
	}
	if err := end(context.Background(), file, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := readID(file); !errors.Is(err, errNotRunning) {
		t.Errorf("after its end: %v, want %v", err, errNotRunning)
	}
	if err := end(context.Background(), file, syscall.SIGKILL); err != nil {
		t.Errorf("end what has ended: %v", err)
	}
}

// TestKubeconfig sees that a client of a kubeconfig and the API server trust each other.
func TestKubeconfig(t *testing.T) {
	p, err := newPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, certificate, err := p.issue(subject{file: "server", name: "server", addresses: []string{controlAddress}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		t.Errorf("the server's key and certificate: %v", err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := p.writeKubeconfig(path, subject{file: "client", name: "system:node:n", group: "system:nodes"}); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Authority []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.Authority)
	server := parse(t, certificate)
	if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: "[" + controlAddress + "]"}); err != nil {
		t.Errorf("the client does not trust the server: %v", err)
	}
	client := parse(t, config.Users[0].User.Certificate)
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the server does not trust the client: %v", err)
	}
	if got := client.Subject; got.CommonName != "system:node:n" || !slices.Equal(got.Organization, []string{"system:nodes"}) {
		t.Errorf("the client is %v", got)
	}
	if _, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key); err != nil {
		t.Errorf("the client's key and certificate: %v", err)
	}
}

func parse(t *testing.T, encoded []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(encoded)
	if block == nil {
		t.Fatalf("not PEM: %q", encoded)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}
