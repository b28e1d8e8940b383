package inside

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/proc"
	"lodge/test/sandbox"
)

func TestMain(m *testing.M) { sandbox.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func guest() agent.Config {
	return agent.Config{ID: "0123", Hostname: "web1", Machine: strings.Repeat("ab", 16), Hosts: "the hosts\n",
		Resolver: resolverMark + "nameserver 10.0.0.1\n", DNS: []string{"10.0.0.1"}, Domain: "lodge.internal", UserData: "#cloud-config\n"}
}

// house is a guest's root with files in it.
func house(t *testing.T, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	root, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

func has(t *testing.T, root *os.File, files map[string]string) {
	t.Helper()
	for name, want := range files {
		b, _ := os.ReadFile(filepath.Join(root.Name(), name))
		if string(b) != want {
			t.Errorf("%s: %q, want %q", name, b, want)
		}
	}
}

func TestPersonal(t *testing.T) {
	c := guest()
	fresh := map[string]string{"etc/hostname": "web1\n", "etc/hosts": "the hosts\n", "etc/resolv.conf": c.Resolver, "etc/.lodge": "0123 web1\n",
		"etc/machine-id": c.Machine + "\n", "run/systemd/resolve/resolv.conf": c.Resolver,
		"run/systemd/resolved.conf.d/lodge.conf":    "[Resolve]\nDNS=10.0.0.1\nDomains=lodge.internal\n",
		"var/lib/cloud/seed/nocloud/meta-data":      "instance-id: 0123\nlocal-hostname: web1\n",
		"var/lib/cloud/seed/nocloud/user-data":      "#cloud-config\n",
		"var/lib/cloud/seed/nocloud/network-config": "network: {config: disabled}\n"}

	root := house(t, map[string]string{"etc/machine-id": "of the image\n", "etc/hosts": "of the image, which is longer than ours\n"})
	Personal(root, c)
	has(t, root, fresh)

	// A second start keeps what the owner changed, and renews what is ours.
	must(t, os.WriteFile(filepath.Join(root.Name(), "etc/hosts"), []byte("mine\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root.Name(), "etc/machine-id"), []byte("mine\n"), 0o644))
	c.DNS, c.Resolver = []string{"10.0.0.2"}, resolverMark+"nameserver 10.0.0.2\n"
	Personal(root, c)
	has(t, root, map[string]string{"etc/hosts": "mine\n", "etc/machine-id": "mine\n", "etc/resolv.conf": c.Resolver})
	must(t, os.WriteFile(filepath.Join(root.Name(), "etc/resolv.conf"), []byte("mine\n"), 0o644))
	Personal(root, c)
	has(t, root, map[string]string{"etc/resolv.conf": "mine\n"})

	// A new name is no new machine; a copy is.
	c.Hostname = "web2"
	Personal(root, c)
	has(t, root, map[string]string{"etc/hostname": "web2\n", "etc/hosts": "the hosts\n", "etc/machine-id": "mine\n"})
	c.ID = "4567"
	Personal(root, c)
	has(t, root, map[string]string{"etc/machine-id": c.Machine + "\n", "etc/.lodge": "4567 web2\n"})
}

// TestPersonalKeys: only a new guest with a server of the secure shell that has no
// keys gets some.
func TestPersonalKeys(t *testing.T) {
	c := guest()
	c.HostKeys = []agent.HostKey{{Kind: "ed25519", Secret: "secret\n", Public: "public\n"}}
	const secret, public = "etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub"
	for name, c2 := range map[string]struct {
		files map[string]string
		gets  bool
	}{
		"a new guest":     {map[string]string{"etc/ssh/sshd_config": "#"}, true},
		"keys of another": {map[string]string{"etc/ssh/sshd_config": "#", "etc/ssh/ssh_host_rsa_key": "mine"}, false},
		"no server":       {map[string]string{"etc/ssh/ssh_config": "#"}, false},
		"one that was up": {map[string]string{"etc/ssh/sshd_config": "#", "etc/.lodge": "0123 web1\n"}, false},
	} {
		root := house(t, c2.files)
		Personal(root, c)
		if !c2.gets {
			for _, f := range []string{secret, public} {
				if _, err := os.Lstat(filepath.Join(root.Name(), f)); err == nil {
					t.Errorf("%s: it has %s", name, f)
				}
			}
			continue
		}
		has(t, root, map[string]string{secret: "secret\n", public: "public\n"})
		if st, err := os.Stat(filepath.Join(root.Name(), secret)); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

// TestPersonalGoesNowhere: whatever the guest put in the way leads nowhere and
// holds nobody up.
func TestPersonalGoesNowhere(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("untouched"), 0o644))
	root := house(t, map[string]string{"etc/machine-id": ""})
	for name, target := range map[string]string{"etc/hosts": outside, "etc/hostname": "../../" + outside, "etc/resolv.conf": outside,
		"run/systemd": filepath.Dir(outside), "var": filepath.Dir(outside)} {
		must(t, os.Symlink(target, filepath.Join(root.Name(), name)))
	}
	must(t, unix.Mkfifo(filepath.Join(root.Name(), "etc/.lodge"), 0o644))
	Personal(root, guest())
	if b, err := os.ReadFile(outside); err != nil || string(b) != "untouched" {
		t.Errorf("%q %v", b, err)
	}
	found, _ := filepath.Glob(filepath.Dir(outside) + "/*")
	if !slices.Equal(found, []string{outside}) {
		t.Errorf("made outside: %v", found)
	}
}

func FuzzAddress(f *testing.F) {
	f.Add([]byte{2, 16, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 0, 1})
	f.Add([]byte{10, 64, 0, 0, 1, 0, 0, 0, 20, 0, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseAddress(b); ok && !a.prefix.Addr().IsValid() {
			t.Error("an address that is none")
		}
	})
}

func TestHowInitsAreAsked(t *testing.T) {
	for _, c := range []struct {
		command bool
		name    string
		reboot  bool
		sig     unix.Signal
		program string
	}{
		{false, "systemd", false, 38, ""}, {false, "systemd", true, 39, ""},
		{false, "busybox", false, unix.SIGUSR2, ""}, {false, "busybox", true, unix.SIGTERM, ""},
		{true, "sh", false, unix.SIGTERM, ""}, {true, "sh", true, unix.SIGUSR1, ""},
		{false, "runit-init", false, unix.SIGTERM, "poweroff"}, {false, "openrc-init", true, unix.SIGTERM, "reboot"},
	} {
		sig, program := New(agent.Config{Command: c.command}).ask(c.name, c.reboot)
		if sig != c.sig || program != c.program {
			t.Errorf("%+v: %v %q", c, sig, program)
		}
	}
	if !proc.Hears([]byte("SigBlk:\t0000000000000000\nSigCgt:\t0000000000000800\n"), unix.SIGUSR2) || proc.Hears([]byte("SigIgn:\t0000000000000800\n"), unix.SIGUSR2) {
		t.Error("who hears is misjudged")
	}
	if !waits("128 0x1 0x2") || waits("running") || waits("") {
		t.Error("who waits is misjudged")
	}
}

// TestNetwork configures cards of the sandbox as those of a guest.
func TestNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("makes network cards: needs root")
	}
	ip := func(args ...string) string {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	// What is at /sys tells of the network that it was mounted in.
	must(t, unix.Mount("sysfs", "/sys", "sysfs", 0, ""))
	t.Cleanup(func() { unix.Unmount("/sys", unix.MNT_DETACH) })
	// The names are crossed over, so that no order of renaming one by one works.
	ip("link", "add", "eth0", "address", "02:00:00:00:00:02", "type", "veth", "peer", "name", "eth1", "address", "02:00:00:00:00:01")
	t.Cleanup(func() { ip("link", "del", "eth0") })
	nics := []agent.NIC{
		{Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400, Prefixes: []string{"10.67.0.5/16", "fd00::5/64"}, Gateways: []string{"10.67.0.1", "fd00::1"}},
		{Name: "eth1", MAC: "02:00:00:00:00:02", Prefixes: []string{"10.68.0.5/16"}, Gateways: []string{"10.68.0.1"}},
	}
	must(t, configureNetwork(nics))
	for _, want := range []string{"mtu 1400", "02:00:00:00:00:01", "inet 10.67.0.5/16 brd 10.67.255.255", "inet6 fd00::5/64"} {
		if got := ip("addr", "show", "dev", "eth0"); !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	if got := ip("route", "show", "default"); strings.Count(got, "default") != 1 || !strings.Contains(got, "via 10.67.0.1 dev eth0") {
		t.Errorf("%s", got)
	}
	if got := ip("-6", "route", "show", "default"); !strings.Contains(got, "via fd00::1 dev eth0") {
		t.Errorf("%s", got)
	}
	if got := reachable(); !slices.Equal(got, []string{"10.67.0.5/16", "10.68.0.5/16", "fd00::5/64"}) {
		t.Errorf("%q", got)
	}

	// Another guest's card: its own hardware address and addresses, and no others.
	had := slices.Clone(nics)
	nics[0].MAC, nics[0].Prefixes, nics[0].Gateways = "02:00:00:00:00:09", []string{"10.67.0.9/16"}, []string{"10.67.0.1"}
	must(t, renumber(had, nics[:1]))
	if got := ip("addr", "show", "dev", "eth0"); !strings.Contains(got, "02:00:00:00:00:09") || !strings.Contains(got, "10.67.0.9/16") || strings.Contains(got, "10.67.0.5") || strings.Contains(got, "fd00::5") {
		t.Errorf("%s", got)
	}
	if got := ip("-6", "addr", "show", "dev", "eth0", "scope", "link"); !strings.Contains(got, "fe80::ff:fe00:9/64") || strings.Count(got, "inet6") != 1 {
		t.Errorf("the address of the link: %s", got)
	}
	if got := ip("route", "show", "default"); strings.Count(got, "default") != 1 || !strings.Contains(got, "via 10.67.0.1 dev eth0") {
		t.Errorf("%s", got)
	}
	if got := ip("link", "show", "dev", "eth1"); !strings.Contains(got, "state DOWN") {
		t.Errorf("a card that is to go is in use: %s", got)
	}
	for _, bad := range []agent.NIC{{Name: "eth0", MAC: "none"}, {Name: "eth0", MAC: "02:00:00:00:00:09", Prefixes: []string{"10.0.0"}},
		{Name: "eth0", MAC: "02:00:00:00:00:09", Gateways: []string{"x"}}} {
		if err := configureNetwork([]agent.NIC{bad}); err == nil || !strings.Contains(err.Error(), "eth0") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestMissingIPv6IsNoFault(t *testing.T) {
	if missing6(netip.MustParseAddr("10.0.0.1"), unix.EAFNOSUPPORT) {
		t.Error("IPv4 may not be missing")
	}
}

func TestUUIDOption(t *testing.T) {
	for release, want := range map[string]string{"7.2.7": ",uuid=null", "6.6.0-rc1": ",uuid=null", "6.1.0-44-cloud-amd64": ",uuid=off", "5.10.0": "", "": ""} {
		if got := uuidOption(release); got != want {
			t.Errorf("%q: %q", release, got)
		}
	}
}

func TestKeyKinds(t *testing.T) {
	got := keyKinds([]string{"/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ecdsa_key.pub", "/etc/ssh/ssh_host_ed25519_key",
		"/etc/ssh/ssh_host_-f x_key", "/etc/ssh/ssh_host_rsa_key-cert.pub"})
	if !slices.Equal(got, []string{"ecdsa", "ed25519"}) {
		t.Errorf("kinds %q", got)
	}
}
