package hostkeys

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestKeys(t *testing.T) {
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		secret, public, err := Make(kind)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.ParsePrivateKey(secret)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if is := ssh.MarshalAuthorizedKey(signer.PublicKey()); !bytes.Equal(is, public) || !bytes.Contains(public, []byte(kind)) {
			t.Errorf("the public key of the kind %s is %s", kind, public)
		}
		if !Known(kind) {
			t.Errorf("%s is not known", kind)
		}
	}
	if Known("dsa") || Known("") {
		t.Error("keys are known that nobody makes")
	}
}
