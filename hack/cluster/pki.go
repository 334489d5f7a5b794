package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is a directory with the keys and certificates of a cluster. kubeadm makes the
// same ones (https://kubernetes.io/docs/setup/best-practices/certificates/).
type pki struct {
	dir         string
	authority   *x509.Certificate
	certificate []byte
	key         crypto.Signer
}

// subject is whom a certificate is for, and at which addresses.
type subject struct {
	file, name, group string
	hosts             []string
	addresses         []string
}

// newPKI makes the authority that signs what issue issues. Its key is nowhere but
// in this process: all that it ever signs is made at the same time.
func newPKI(dir string) (*pki, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := template(pkix.Name{CommonName: "rawblock-cluster"})
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	certificate, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if authority, err = x509.ParseCertificate(certificate); err != nil {
		return nil, err
	}
	p := &pki{dir: dir, authority: authority, certificate: encode("CERTIFICATE", certificate), key: key}
	return p, writeFile(filepath.Join(dir, "ca.crt"), p.certificate)
}

func template(name pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		Subject:   name,
		NotBefore: now.Add(-time.Minute),
		NotAfter:  now.AddDate(1, 0, 0),
	}
}

// issue writes a key and a certificate for a client and server, and returns both.
func (p *pki) issue(s subject) (key, certificate []byte, err error) {
	signer, encoded, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	t := template(pkix.Name{CommonName: s.name})
	if s.group != "" {
		t.Subject.Organization = []string{s.group}
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	t.DNSNames = s.hosts
	for _, address := range s.addresses {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(address))
	}
	signed, err := x509.CreateCertificate(rand.Reader, t, p.authority, signer.Public(), p.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certify %s: %w", s.name, err)
	}
	certificate = encode("CERTIFICATE", signed)
	return encoded, certificate, errors.Join(
		writeFile(filepath.Join(p.dir, s.file+".key"), encoded),
		writeFile(filepath.Join(p.dir, s.file+".crt"), certificate))
}

// issueTokenKey writes the pair of keys that service accounts' tokens are signed and checked with.
func (p *pki) issueTokenKey() error {
	signer, key, err := newKey()
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		writeFile(filepath.Join(p.dir, "sa.key"), key),
		writeFile(filepath.Join(p.dir, "sa.pub"), encode("PUBLIC KEY", public)))
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	return key, encode("EC PRIVATE KEY", encoded), err
}

func encode(kind string, content []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content})
}

// writeKubeconfig issues a client's certificate, and writes how that client
// reaches the API server.
func (p *pki) writeKubeconfig(path string, s subject) error {
	key, certificate, err := p.issue(s)
	if err != nil {
		return err
	}
	// Bytes are base64 in JSON, as these fields are.
	return writeObject(path, object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": "rawblock", "cluster": object{
			"server": "https://" + net.JoinHostPort(controlAddress, "6443"), "certificate-authority-data": p.certificate,
		}}},
		"users":           []object{{"name": s.name, "user": object{"client-certificate-data": certificate, "client-key-data": key}}},
		"contexts":        []object{{"name": "rawblock", "context": object{"cluster": "rawblock", "user": s.name}}},
		"current-context": "rawblock",
	})
}

func (c *cluster) kubeconfig() string { return c.path("admin.kubeconfig") }

// writeCredentials makes whatever the cluster's parts know each other by, once:
// the kubeconfig of the user is the last one.
func (c *cluster) writeCredentials() error {
	if _, err := os.Stat(c.kubeconfig()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	control := c.control()
	p, err := newPKI(control.path(configDir))
	if err != nil {
		return err
	}
	errs := []error{p.issueTokenKey()}
	for _, s := range []subject{
		{
			file: "apiserver", name: "kube-apiserver", addresses: []string{controlAddress, serviceAddress, "127.0.0.1"},
			hosts: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		},
		{file: "apiserver-kubelet-client", name: "kube-apiserver-kubelet-client", group: "system:masters"},
	} {
		_, _, err := p.issue(s)
		errs = append(errs, err)
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		errs = append(errs, p.writeKubeconfig(control.path(configDir, name+".kubeconfig"), subject{file: name, name: "system:" + name}))
	}
	for _, node := range c.nodes() {
		errs = append(errs, p.writeNodeCredentials(node))
	}
	errs = append(errs, p.writeKubeconfig(c.kubeconfig(), subject{file: "admin", name: "admin", group: "system:masters"}))
	return errors.Join(errs...)
}

// writeNodeCredentials makes those of a node's kubelet and kube-proxy.
func (p *pki) writeNodeCredentials(node machine) error {
	of := *p
	of.dir = node.path(configDir)
	kubelet := subject{
		file: "kubelet", name: "system:node:" + node.name, group: "system:nodes",
		hosts: []string{node.name}, addresses: []string{node.address},
	}
	return errors.Join(
		writeFile(filepath.Join(of.dir, "ca.crt"), p.certificate),
		of.writeKubeconfig(filepath.Join(of.dir, "kubelet.kubeconfig"), kubelet),
		of.writeKubeconfig(filepath.Join(of.dir, "kube-proxy.kubeconfig"), subject{file: "kube-proxy", name: "system:kube-proxy"}))
}
