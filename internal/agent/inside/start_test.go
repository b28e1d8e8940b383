package inside

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// TestRehearse: a program is run as one that the host wants is, and is over
// when the rehearsal is.
func TestRehearse(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	must(t, os.WriteFile(filepath.Join(dir, "true"), []byte("#!/bin/sh\necho $USER >"+ran+"\n"), 0o755))
	a := New(agent.Config{Env: map[string]string{"PATH": dir + ":/bin"}})
	a.rehearse()
	if b, err := os.ReadFile(ran); err != nil || string(b) != "root\n" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestAccounts: who was looked up is remembered for as long as the guest's files
// certainly say the same.
func TestAccounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	passwd := filepath.Join(t.TempDir(), "passwd")
	write := func(home string) {
		must(t, os.WriteFile(passwd, []byte("ann:x:1000:1000::"+home+":/bin/sh\n"), 0o644))
	}
	var l accounts
	if _, err := l.lookup("root"); err != nil || l.from == [2]stamp{} {
		t.Errorf("files that have been as they are for long: %v, remembered as %v", err, l.from)
	}
	write("/a")
	must(t, unix.Mount(passwd, passwdFile, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(passwdFile, unix.MNT_DETACH) })
	for _, home := range []string{"/a", "/b", "/c"} { // of the same size, within no time
		write(home)
		if who, err := l.lookup("ann"); err != nil || who.Home != home || who.UID != 1000 {
			t.Errorf("%+v, %v; home is %s", who, err, home)
		}
	}
	if _, err := l.lookup("bob"); err == nil {
		t.Error("bob was found")
	}
}
