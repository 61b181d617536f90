package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Names of the files in the state's pki directory.
const (
	authorityFile         = "ca"
	servingFile           = "apiserver"
	adminFile             = "admin"
	probeFile             = "probe"
	controllerManagerFile = "controller-manager"
	serviceAccountFile    = "service-account"
)

// probeUser is the identity with which this program looks whether all is up. It
// is a user of its own so that the audit log can leave it out.
const probeUser = "system:controlplane-probe"

// clients are the certificates to log in with, by file.
var clients = map[string]pkix.Name{
	adminFile:             {CommonName: "kubernetes-admin", Organization: []string{"system:masters"}},
	probeFile:             {CommonName: probeUser, Organization: []string{"system:masters"}},
	controllerManagerFile: {CommonName: "system:kube-controller-manager"},
}

func (s *state) cert(name string) string { return s.path("pki", name+".crt") }
func (s *state) key(name string) string  { return s.path("pki", name+".key") }

// ensureKeys makes an authority, all certificates and the key for ServiceAccount
// tokens, unless they are there. The directory appears complete or not at all.
func (s *state) ensureKeys() error {
	if _, err := os.Stat(s.path("pki")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unfinished := s.path("pki.unfinished")
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	if err := os.Mkdir(unfinished, 0o700); err != nil {
		return err
	}
	if err := makeKeys(unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, s.path("pki"))
}

func makeKeys(dir string) error {
	authority, err := makeAuthority(dir)
	if err != nil {
		return err
	}
	err = authority.issue(servingFile, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{
			"localhost",
			"kubernetes",
			"kubernetes.default",
			"kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local",
		},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceIP)},
	})
	if err != nil {
		return err
	}
	for name, subject := range clients {
		err := authority.issue(name, &x509.Certificate{
			Subject:     subject,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			return err
		}
	}
	// RSA, because nearly every cluster signs its ServiceAccount tokens with RS256.
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return writeKey(dir, serviceAccountFile, signer)
}

// authority is a certificate authority that writes what it issues to a directory.
type authority struct {
	dir         string
	certificate *x509.Certificate
	key         crypto.Signer
}

func makeAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key}
	a.certificate = &x509.Certificate{
		Subject:               pkix.Name{CommonName: "controlplane-ca"},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := a.sign(a.certificate, key.Public())
	if err != nil {
		return nil, err
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, errors.Join(
		writePEM(dir, authorityFile+".crt", "CERTIFICATE", der),
		writeKey(dir, authorityFile, key),
	)
}

// issue makes a key and a certificate for it, from a template with the subject.
func (a *authority) issue(name string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := a.sign(template, key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		writePEM(a.dir, name+".crt", "CERTIFICATE", der),
		writeKey(a.dir, name, key),
	)
}

func (a *authority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// Valid for an hour already, for clients whose clock a test has set back.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(10, 0, 0)
	return x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
}

// writeKey writes the key as PKCS #8 and, for use by itself, its public half.
func writeKey(dir, name string, key crypto.Signer) error {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		writePEM(dir, name+".key", "PRIVATE KEY", private),
		writePEM(dir, name+".pub", "PUBLIC KEY", public),
	)
}

func writePEM(dir, name, kind string, der []byte) error {
	block := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	return os.WriteFile(filepath.Join(dir, name), block, 0o600)
}
