package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lodge/internal/base/fsx"
)

// The files of LoadOrMakeTLS. Clients trust CAFile (LODGE_CACERT).
const (
	CAFile      = "ca.crt"
	caKeyFile   = "ca.key"
	certFile    = "server.crt"
	certKeyFile = "server.key"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// certLife stays below the 398 days that some clients allow at most.
	certLife = 365 * 24 * time.Hour
	renewal  = 30 * 24 * time.Hour // before its end a certificate is made anew
)

// LoadOrMakeTLS returns the configuration for HTTPS with a certificate for
// hosts (names and addresses) of the authority in dir, making what is missing,
// nearly over or for other hosts.
func LoadOrMakeTLS(dir string, hosts []string) (*tls.Config, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	now := time.Now()
	ca, err := loadPair(dir, CAFile, caKeyFile)
	if err == nil && !lasts(ca.Leaf, now) {
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = makePair(dir, CAFile, caKeyFile, authority(now), nil)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := loadPair(dir, certFile, certKeyFile)
	// One that cannot be read, such as half of a pair, is made anew: nobody
	// trusts it but by the authority.
	if err != nil || !lasts(cert.Leaf, now) || !covers(cert.Leaf, hosts) || cert.Leaf.CheckSignatureFrom(ca.Leaf) != nil {
		cert, err = makePair(dir, certFile, certKeyFile, leaf(now, hosts), &ca)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}, nil
}

func loadPair(dir, cert, key string) (tls.Certificate, error) {
	return tls.LoadX509KeyPair(filepath.Join(dir, cert), filepath.Join(dir, key))
}

func lasts(c *x509.Certificate, now time.Time) bool {
	return c != nil && now.After(c.NotBefore) && now.Add(renewal).Before(c.NotAfter)
}

func covers(c *x509.Certificate, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool { return c.VerifyHostname(h) != nil })
}

func authority(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "Lodge certificate authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func leaf(now time.Time, hosts []string) *x509.Certificate {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: "lodged"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	return c
}

// makePair makes a key and its certificate, signed by ca or, without one, by
// itself. The key is written first: a certificate is never without its key.
func makePair(dir, certName, keyName string, c *x509.Certificate, ca *tls.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return tls.Certificate{}, err
	}
	parent, signer := c, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := fsx.WriteFile(filepath.Join(dir, keyName), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := fsx.WriteFile(filepath.Join(dir, certName), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	return loadPair(dir, certName, keyName)
}
