// Package hostkeys makes the keys that a secure shell's server shows.
package hostkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"

	"golang.org/x/crypto/ssh"
)

// makers make the kinds of keys that there are today.
var makers = map[string]func() (crypto.Signer, error){
	"ed25519": func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	},
	"ecdsa": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"rsa":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
}

// Known reports whether there are keys of a kind, as in a key's file name:
// "ed25519". Of kinds of the past nobody makes any more.
func Known(kind string) bool { return makers[kind] != nil }

// Make makes a key of a known kind and returns what its files hold.
func Make(kind string) (secret, public []byte, err error) {
	key, err := makers[kind]()
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, nil, err
	}
	open, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(open), nil
}
