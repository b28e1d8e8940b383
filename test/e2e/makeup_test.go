package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/api"
	"lodge/test/sandbox"
)

// TestMakeUp does what the README tells a newcomer to do, on a machine (a
// network and a data directory) where nothing has been done yet.
func TestMakeUp(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("guests need root")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "lodge-up-")
	if err != nil {
		t.Fatal(err)
	}
	env := []string{
		"LODGE_DATA=" + dir + "/data", "LODGE_RUN=" + dir + "/run", "http_proxy=" + sandbox.Proxy(t),
		"LODGED_FLAGS=--https none --raise-limits=false --prefix up --host testhost --cgroup " + filepath.Base(dir),
	}
	lodge := func(args ...string) result {
		return runIn(t, []string{"LODGE_HOST=unix://" + dir + "/run/lodged.sock"}, nil, append([]string{binary(t, "lodge")}, args...)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(dir + "/data/lodged.log")
			t.Logf("the daemon's log:\n%s", lastPart(text, 8000))
		}
		runIn(t, env, nil, root+"/scripts/down.sh")
		os.RemoveAll(dir)
	})

	up := runIn(t, env, nil, root+"/scripts/up.sh")
	if up.code != 0 {
		t.Fatalf("make up: %d\n%s%s", up.code, up.out, up.err)
	}
	t.Log(up.out)
	three := map[string]string{"web1": "os", "db1": "paravirt", "dev1": "vm"}
	for name, model := range three {
		if !strings.Contains(up.out, "<h1>"+name+"</h1>") {
			t.Errorf("make up does not show the page of %s", name)
		}
		var g api.Guest
		if err := json.Unmarshal([]byte(lodge("show", name, "-o", "json").out), &g); err != nil || g.Model != model || g.Phase != "running" {
			t.Errorf("%s is %+v, %v", name, g, err)
		}
		if r := lodge("exec", name, "--", "systemctl", "is-system-running"); strings.TrimSpace(r.out) != "running" {
			failed := lodge("exec", name, "--", "systemctl", "--failed", "--no-legend")
			t.Errorf("systemd of %s says %q; failed units:\n%s", name, r.out, failed.out)
		}
		for other := range three {
			if r := lodge("exec", name, "--", "ping", "-c1", "-W20", other); r.code != 0 {
				t.Errorf("%s does not reach %s by name: %s%s", name, other, r.out, r.err)
			}
		}
	}
	for _, name := range []string{"db1", "dev1"} {
		r := lodge("exec", name, "--", "systemctl", "show", "--property", "ConditionResult,ConditionTimestampMonotonic", "lodge-ssh-keys")
		if !strings.Contains(r.out, "ConditionResult=no\n") || strings.Contains(r.out, "Monotonic=0\n") {
			t.Errorf("%s had to make the keys of its secure shell itself, which the host does faster: %q%s", name, r.out, r.err)
		}
	}
	cloudInit(t, dir, lodge)
	onDemand(t, lodge)
	idle(t, lodge)
	if again := runIn(t, env, nil, root+"/scripts/up.sh"); again.code != 0 {
		t.Errorf("a second make up: %d\n%s%s", again.code, again.out, again.err)
	}

	if down := runIn(t, env, nil, root+"/scripts/down.sh"); down.code != 0 {
		t.Fatalf("make down: %d\n%s%s", down.code, down.out, down.err)
	}
	nothingLeft(t, dir, filepath.Base(dir), "up")
	if up := runIn(t, env, nil, root+"/scripts/up.sh"); up.code != 0 {
		t.Fatalf("make up after make down: %d\n%s%s", up.code, up.out, up.err)
	}
	var all []api.Guest
	if err := json.Unmarshal([]byte(lodge("ls", "-o", "json").out), &all); err != nil || len(all) != 3 {
		t.Errorf("after make up, down, up: %d guests, %v", len(all), err)
	}
}

// onDemand checks that a virtual machine's kernel loads what its init was kept
// from loading at boot as soon as a program uses it, that what other units require
// is there, and that no module taints it.
func onDemand(t *testing.T, lodge func(args ...string) result) {
	t.Helper()
	const use = "losetup -f && : </dev/mapper/control && mountpoint -q /sys/fs/fuse/connections && mountpoint -q /sys/kernel/config && cut -d' ' -f1 /proc/modules | grep -Ex 'loop|dm_mod' | sort | xargs && cat /proc/sys/kernel/tainted"
	if r := lodge("exec", "dev1", "--", "sh", "-c", use); r.out != "/dev/loop0\ndm_mod loop\n0\n" {
		t.Errorf("a virtual machine does not load on demand what it uses: %q%s", r.out, r.err)
	}
}

// idle checks that what an idle translated virtual machine does not use is
// compressed, and that it answers nevertheless. Others are left as they are.
func idle(t *testing.T, lodge func(args ...string) result) {
	t.Helper()
	if r := lodge("ls"); !strings.Contains(r.out, "vm (tcg)") {
		if !strings.Contains(r.out, "vm (kvm)") {
			t.Errorf("how its processor is made is not said of a virtual machine:\n%s", r.out)
		}
		return
	}
	const patience = 2 * time.Minute
	doctor := ""
	for end := time.Now().Add(patience); !strings.Contains(doctor, "of what guests do not use in"); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Errorf("no guest is idle; the doctor says\n%s", doctor)
			return
		}
		doctor = lodge("doctor").out
	}
	if r := lodge("exec", "dev1", "--", "true"); r.code != 0 {
		t.Errorf("a guest whose memory was compressed does not answer: %s", r.err)
	}
}

// cloudInit launches a guest with user data and checks that cloud-init did what
// they say, once, in a guest that is otherwise as healthy as any.
func cloudInit(t *testing.T, dir string, lodge func(args ...string) result) {
	t.Helper()
	file := filepath.Join(dir, "user-data")
	text := "#cloud-config\nusers: [{name: ada, shell: /bin/bash}]\nwrite_files: [{path: /etc/greeting, content: hello}]\nruncmd: [[touch, /root/ran]]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := lodge("launch", "debian/12", "seeded", "--cloud-init", file); r.code != 0 {
		t.Fatalf("launch with user data: %s", r.err)
	}
	until(t, "cloud-init is done", func() error {
		if r := lodge("exec", "seeded", "--", "test", "-e", "/run/cloud-init/result.json"); r.code != 0 {
			return errors.New(r.err)
		}
		return nil
	})
	r := lodge("exec", "seeded", "--", "sh", "-c", "id -un ada; cat /etc/greeting; test -e /root/ran && echo; hostname; systemctl is-system-running --wait")
	if want := "ada\nhello\nseeded\nrunning\n"; r.out != want {
		t.Errorf("cloud-init made %q, want %q; %s", r.out, want, lodge("exec", "seeded", "--", "cloud-init", "status", "--long").out)
	}
	if r := lodge("rm", "-f", "seeded"); r.code != 0 {
		t.Errorf("rm: %s", r.err)
	}
}
