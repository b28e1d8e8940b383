package qemu

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"lodge/internal/engine"
	"lodge/test/sandbox"
)

// TestSeed shows what cloud-init in a guest of a disk reads.
func TestSeed(t *testing.T) {
	if _, err := exec.LookPath("mcopy"); err != nil {
		sandbox.Missing(t, "mtools is not installed")
	}
	g, p := web1()
	g.Spec.UserData = "#cloud-config\npackages: [nginx]\n"
	p.NICs[0].IPv4, p.NICs[0].Gateway4 = netip.MustParsePrefix("10.1.2.3/24"), netip.MustParseAddr("10.1.2.1")
	p.NICs[0].IPv6, p.NICs[0].Gateway6 = netip.MustParsePrefix("fd00::3/64"), netip.MustParseAddr("fd00::1")
	p.NICs = append(p.NICs, engine.NIC{Name: "eth1", MAC: "02:00:00:00:00:02"})
	p.DNS, p.Domain = []netip.Addr{netip.MustParseAddr("10.1.2.1")}, "lodge.internal"
	b, err := seedVolume(g, p)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"user-data": g.Spec.UserData,
		"meta-data": "instance-id: abcdefghijkmnpqr\nlocal-hostname: web1\n",
		"network-config": `{"version":2,"ethernets":{` +
			`"eth0":{"match":{"macaddress":"02:00:00:00:00:01"},"mtu":1450,"dhcp4":false,"dhcp6":false,"addresses":["10.1.2.3/24","fd00::3/64"],` +
			`"routes":[{"to":"0.0.0.0/0","via":"10.1.2.1"},{"to":"::/0","via":"fd00::1"}],"nameservers":{"addresses":["10.1.2.1"],"search":["lodge.internal"]}},` +
			`"eth1":{"match":{"macaddress":"02:00:00:00:00:02"},"dhcp4":false,"dhcp6":false}}}`,
	} {
		got, err := exec.Command("mcopy", "-i", file, "::"+name, "-").Output()
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\n%s", name, err, got, want)
		}
	}
	if again, err := seedVolume(g, p); err != nil || !bytes.Equal(again, b) {
		t.Error("the same is not the same")
	}
}
