package inside

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// TestServedKeys: what another guest's server showed is taken away at once, and
// what the host made takes its place, once, and nothing that was not asked for.
func TestServedKeys(t *testing.T) {
	k := serverKeys{at: filepath.Join(t.TempDir(), "ssh_host_")}
	for _, name := range []string{"ed25519_key", "ed25519_key.pub", "rsa_key", "rsa_key.pub"} {
		if err := os.WriteFile(k.at+name, []byte("another's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kinds := k.fresh(true)
	if left, _ := filepath.Glob(k.at + "*"); !slices.Equal(kinds, []string{"ed25519", "rsa"}) || len(left) > 0 {
		t.Fatalf("kinds %q, left are %q", kinds, left)
	}
	if again := k.fresh(true); !slices.Equal(again, kinds) {
		t.Errorf("a copy of one that awaits keys awaits %q", again)
	}
	if err := os.Symlink("elsewhere", k.at+"ecdsa_key"); err != nil {
		t.Fatal(err)
	}
	made := []agent.HostKey{{Kind: "rsa", Secret: "r", Public: "R"}, {Kind: "ed25519", Secret: "e", Public: "E"}, {Kind: "ecdsa", Secret: "x", Public: "X"}}
	if err := k.take(made); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"rsa_key": "r", "rsa_key.pub": "R", "ed25519_key": "e", "ed25519_key.pub": "E"} {
		if is, err := os.ReadFile(k.at + name); err != nil || string(is) != want {
			t.Errorf("%s: %q, %v", name, is, err)
		}
	}
	if st, err := os.Stat(k.at + "rsa_key"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("a secret key is %v, %v", st, err)
	}
	if _, err := os.Lstat(k.at + "ecdsa_key.pub"); err == nil {
		t.Error("a key was written that was not asked for")
	}
	if err := k.take(made); !errs.Is(err, errs.Conflict) {
		t.Errorf("keys that nobody awaits: %v", err)
	}
}
