package layer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestAnonymize makes a copy of a guest's layer another guest's: in either form,
// and also after it was cut off.
func TestAnonymize(t *testing.T) {
	need(t)
	dir := t.TempDir()
	etc := filepath.Join(dir, "upper/etc/ssh")
	must(t, os.MkdirAll(etc, 0o755))
	outside := filepath.Join(t.TempDir(), "ssh_host_rsa_key")
	must(t, os.WriteFile(outside, []byte("another's"), 0o600))
	for name, text := range map[string]string{
		"ssh_host_ed25519_key": "old", "ssh_host_ed25519_key.pub": "old", "ssh_host_ecdsa_key": "old", "ssh_host_rsa_key": "old",
		"ssh_host_rsa_key.pub": "old", "ssh_host_rsa_key-cert.pub": "old", "ssh_host_dsa_key": "old", "ssh_host_dsa_key.pub": "old",
		".lodge-key-x": "cut off", "sshd_config": "kept", "../machine-id": "old", "../hostname": "kept",
	} {
		must(t, os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644))
	}
	must(t, os.Symlink(outside, filepath.Join(etc, "ssh_host_odd_key")))

	must(t, Anonymize(t.Context(), dir))
	first := keysOf(t, etc)
	for _, name := range []string{"ssh_host_rsa_key-cert.pub", "ssh_host_dsa_key", "ssh_host_dsa_key.pub", ".lodge-key-x", "../machine-id"} {
		if _, err := os.Lstat(filepath.Join(etc, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	for name, want := range map[string]string{"sshd_config": "kept", "../hostname": "kept", "ssh_host_odd_key": "another's"} {
		if got, err := os.ReadFile(filepath.Join(etc, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "another's" {
		t.Errorf("a link was followed: %q, %v", text, err)
	}

	must(t, ToVolume(t.Context(), dir, 64<<20, nil))
	must(t, Anonymize(t.Context(), dir))
	must(t, ToTree(t.Context(), dir, nil))
	for kind, key := range keysOf(t, etc) {
		if bytes.Equal(key, first[kind]) {
			t.Errorf("a copy of a copy has the other's %s key", kind)
		}
	}
}

// keysOf reads the pairs of keys in a folder, each of which must match.
func keysOf(t *testing.T, folder string) map[string][]byte {
	t.Helper()
	keys := map[string][]byte{}
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		file := filepath.Join(folder, "ssh_host_"+kind+"_key")
		secret, err := os.ReadFile(file)
		must(t, err)
		signer, err := ssh.ParsePrivateKey(secret)
		must(t, err)
		public, err := os.ReadFile(file + ".pub")
		must(t, err)
		if got := ssh.MarshalAuthorizedKey(signer.PublicKey()); !bytes.Equal(got, public) || !strings.Contains(string(got), kind) {
			t.Errorf("%s: the public key is %q, want %q", kind, public, got)
		}
		info, err := os.Stat(file)
		must(t, err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != "0600" {
			t.Errorf("%s: mode %s", kind, got)
		}
		keys[kind] = secret
	}
	return keys
}
