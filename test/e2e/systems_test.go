package e2e

import (
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lodge/api"
)

// systemPatience is for what boots without the help of the processor, on a
// machine that does other things too.
const systemPatience = 15 * time.Minute

// inTime is until for whole systems.
func inTime(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(systemPatience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, systemPatience, err)
}

// in is the same server, of a test within the test.
func (s *server) in(t *testing.T) *server {
	c := *s
	c.t = t
	return &c
}

// moves are what tells a terminal to go elsewhere or change its colours, which
// a BIOS does in the middle of words.
var moves = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// says waits until a guest's console has said all of these.
func (s *server) says(guest string, words ...string) string {
	s.t.Helper()
	var log string
	inTime(s.t, guest+" says "+strings.Join(words, ", "), func() error {
		if g := s.guest(guest); g.Phase != "running" {
			s.t.Fatalf("%s is %s: %+v", guest, g.Phase, g)
		}
		log = moves.ReplaceAllString(s.try("logs", guest).out, "")
		for _, w := range words {
			if !strings.Contains(log, w) {
				return fmt.Errorf("its console has no %q; it ends with %q", w, log[max(0, len(log)-300):])
			}
		}
		return nil
	})
	return log
}

// TestMemoryTester boots a program that is no Linux from a disc, and one from
// no disc at all.
func TestMemoryTester(t *testing.T) {
	iso := grubDisc(t, "linux /boot/memtest86+x64.bin console=ttyS0,115200", "/boot/memtest86+x64.bin")
	s := newServer(t)
	s.lodge("image", "import", iso, "memtest")
	s.lodge("launch", "memtest", "m1", "--model", "vm", "--network", "none", "--memory", "64MiB")
	s.says("m1", "Memtest86+ v")
	s.lodge("stop", "--force", "m1")
}

// long skips a test that takes longer than CI has.
func long(t testing.TB) {
	t.Helper()
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("boots a whole system without the help of the processor: set LODGE_TEST_LONG")
	}
}

// TestDebianFromItsOwnDisk boots an installed system by its own boot loader,
// with all kinds of firmware; it gets the addresses that are its own. Its agent,
// which is QEMU's, does what Lodge's does elsewhere, and its cloud-init finds a
// seed where there is one.
func TestDebianFromItsOwnDisk(t *testing.T) {
	long(t)
	s := newServer(t)
	s.lodge("image", "import", debianDisk(t), "bare/12")
	if im := list[api.Image](s, "image", "ls"); len(im) != 1 || im[0].Disk != "qcow2" || im[0].DiskBytes != (sysStart+sysSectors)*sector || im[0].Architecture != "amd64" {
		t.Errorf("image: %+v", im)
	}
	for firmware, check := range map[string]func(s *server, guest string){
		"bios":        (*server).theirAgent,
		"uefi":        func(*server, string) {},
		"uefi-secure": (*server).booted,
	} {
		t.Run(firmware, func(t *testing.T) {
			s := s.in(t)
			name := "bare-" + firmware
			s.lodge("launch", "bare/12", name, "--model", "vm", "--firmware", firmware, "--memory", "512MiB")
			log := s.says(name, "this is bare")
			for _, a := range s.guest(name).Addresses {
				if !strings.Contains(log, a+"/") {
					t.Errorf("it does not have its address %s", a)
				}
			}
			inTime(t, "its agent answers", func() error {
				if g := s.guest(name); !g.Ready || !strings.HasPrefix(g.Agent, "QEMU guest agent") || g.Problem != nil {
					return fmt.Errorf("ready %v, agent %q, problem %+v", g.Ready, g.Agent, g.Problem)
				}
				return nil
			})
			check(s, name)
			s.lodge("stop", name, "--timeout", "300")
		})
	}
	t.Run("seed", func(t *testing.T) { s.in(t).seeded() })
}

// theirAgent does with a guest what only its agent can.
func (s *server) theirAgent(guest string) {
	s.t.Helper()
	if out := s.lodge("exec", guest, "--", "sh", "-c", "hostname; pwd; id -u"); out != "bare\n/root\n0\n" {
		s.t.Errorf("exec said %q", out)
	}
	if r := s.try("exec", guest, "--", "sh", "-c", "echo no >&2; exit 7"); r.code != 7 || r.err != "no\n" {
		s.t.Errorf("%+v", r)
	}
	s.refused(1, []string{"no terminals", "lodge console"}, "exec", "-t", guest, "--", "sh")
	dir := s.t.TempDir()
	write(s.t, filepath.Join(dir, "tree/f"), strings.Repeat("content ", 50_000))
	s.lodge("cp", filepath.Join(dir, "tree"), guest+":/srv/")
	s.lodge("cp", guest+":/srv/tree", filepath.Join(dir, "back"))
	program(s.t, "diff", "-r", filepath.Join(dir, "tree"), filepath.Join(dir, "back"))
	s.lodge("snapshot", "create", guest, "rest")
	if all := list[api.Snapshot](s, "snapshot", "ls", guest); len(all) != 1 || all[0].Rest != "quiesced" {
		s.t.Errorf("snapshots: %+v", all)
	}
	s.lodge("exec", guest, "--", "sh", "-c", "echo thawed >/root/f; sync")
	s.lodge("exec", guest, "--", "ip", "addr", "add", "10.99.0.7/24", "dev", strings.TrimSpace(s.lodge("exec", guest, "--", "sh", "-c", "ls /sys/class/net | grep -v lo")))
	inTime(s.t, "an address of its own making is shown", func() error {
		if g := s.guest(guest); !slices.Contains(g.Addresses, "10.99.0.7") {
			return fmt.Errorf("its addresses are %v", g.Addresses)
		}
		return nil
	})
}

// booted checks that a guest's firmware let nothing start that was not signed.
func (s *server) booted(guest string) {
	s.t.Helper()
	out := s.lodge("exec", guest, "--", "sh", "-c", "od -An -tu1 -j4 /sys/firmware/efi/efivars/SecureBoot-*; dmesg | grep -i 'secure boot enabled'")
	if !strings.HasPrefix(strings.TrimSpace(out), "1\n") {
		s.t.Errorf("Secure Boot: %q", out)
	}
}

// seeded boots a disk with what cloud-init is to do there.
func (s *server) seeded() {
	s.t.Helper()
	data := filepath.Join(s.t.TempDir(), "user-data")
	write(s.t, data, "#cloud-config\nwrite_files:\n- path: /root/seeded\n  content: it was\n")
	s.lodge("launch", "bare/12", "cloudy", "--model", "vm", "--memory", "512MiB", "--cloud-init", data)
	inTime(s.t, "cloud-init does what it is told", func() error {
		r := s.try("exec", "cloudy", "--", "sh", "-c", "hostname; cat /root/seeded; ip -br addr show scope global")
		for _, want := range append(s.guest("cloudy").Addresses, "cloudy\n", "it was") {
			if !strings.Contains(r.out, want) {
				return fmt.Errorf("there is no %q in %+v", want, r)
			}
		}
		return nil
	})
	s.lodge("stop", "--force", "cloudy")
}

// TestSecureBoot: what nobody has signed does not boot, and it is said why.
func TestSecureBoot(t *testing.T) {
	long(t)
	need(t, "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
	s := newServer(t)
	s.lodge("image", "import", grubDisc(t, "echo it boots\nsleep 600", "/etc/hostname"), "unsigned")
	s.lodge("launch", "unsigned", "u", "--model", "vm", "--firmware", "uefi-secure", "--network", "none", "--memory", "256MiB", "--disk", "64MiB")
	s.stuck("u", "Secure Boot", "Access Denied")
	s.lodge("stop", "--force", "u")
}

// stuck waits until it is said why a guest does not boot, with what its console
// shows of it.
func (s *server) stuck(guest, why, last string) {
	s.t.Helper()
	inTime(s.t, guest+" is said not to boot", func() error {
		var g api.Guest
		if err := json.Unmarshal([]byte(s.lodge("show", guest, "-o", "json")), &g); err != nil {
			s.t.Fatal(err)
		}
		if g.Problem == nil || g.Problem.Code != "not-booted" || !strings.Contains(g.Problem.Message, why) || !strings.Contains(g.Last, last) {
			return fmt.Errorf("problem %+v, last %q", g.Problem, g.Last)
		}
		return nil
	})
	if out := s.lodge("ls"); !strings.Contains(out, "running (not-booted)") {
		s.t.Errorf("ls: %s", out)
	}
	if out := s.lodge("explain", guest); !strings.Contains(out, why) || !strings.Contains(out, last) {
		s.t.Errorf("explain: %s", out)
	}
}

// shot is what a guest's screen shows.
func (s *server) shot(guest string) image.Image {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "shot.png")
	s.lodge("screenshot", guest, "-o", file)
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// lit counts the pixels that are neither black nor grey: firmware and boot
// loaders have none.
func lit(m image.Image) (n int) {
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			if r, g, b, _ := m.At(x, y).RGBA(); r != g || g != b {
				n++
			}
		}
	}
	return n
}

// TestInvaders boots a game that is all the software there is: no serial line,
// only a screen and a keyboard.
func TestInvaders(t *testing.T) {
	iso := grubDisc(t, "multiboot /boot/invaders.exec", "/boot/invaders.exec")
	s := newServer(t)
	s.lodge("image", "import", iso, "invaders")
	s.lodge("launch", "invaders", "i1", "--model", "vm", "--network", "none", "--memory", "64MiB")
	var first image.Image
	inTime(t, "the game is on the screen", func() error {
		if first = s.shot("i1"); lit(first) < 500 {
			return fmt.Errorf("%d coloured pixels", lit(first))
		}
		return nil
	})
	where := ship(first)
	inTime(t, "the ship goes to the left", func() error {
		s.lodge("sendkey", "i1", "left", "left", "left")
		if now := ship(s.shot("i1")); now >= where {
			return fmt.Errorf("it was at %d and is at %d", where, now)
		}
		return nil
	})
	s.lodge("stop", "--force", "i1")
}

// ship is how far from the left the middle of what is magenta is.
func ship(m image.Image) int {
	sum, n := 0, 0
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			if r, g, b, _ := m.At(x, y).RGBA(); g == 0 && r > 0 && r == b {
				sum, n = sum+x, n+1
			}
		}
	}
	return sum / max(1, n)
}

// TestFirmwareShell talks to what UEFI has when there is nothing to boot.
func TestFirmwareShell(t *testing.T) {
	long(t)
	need(t, "/usr/share/OVMF")
	s := newServer(t)
	s.lodge("launch", "empty", "u1", "--model", "vm", "--firmware", "uefi", "--network", "none", "--memory", "128MiB", "--disk", "64MiB")
	s.says("u1", "Shell>")
	s.lodge("sendkey", "u1", "v", "e", "r", "ret")
	s.says("u1", "UEFI Interactive Shell v", "EDK II")
	s.lodge("stop", "--force", "u1")
}

// TestDisksThatDoNotBoot: what is wrong is on the console, the guest can be
// looked at, and stops when it must.
func TestDisksThatDoNotBoot(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "kernel")
	write(t, broken, strings.Repeat("no kernel ", 1000))
	s := newServer(t)
	s.lodge("image", "import", grubDisc(t, "linux /boot/kernel", broken), "corrupt")
	s.lodge("image", "import", grubDisc(t, "echo -n the disc waits for a key\nread key\necho it has $key\nsleep 600", "/etc/hostname"), "waits")
	for _, c := range []struct{ image, says, why, last, keys, then string }{
		{"empty", "No bootable device.", "found nothing to boot", "No bootable device.", "", ""},
		{"corrupt", "invalid magic number", "waits", "*it", "", ""},                                                          // its menu is back by then
		{"waits", "the disc waits for a key", "the disc waits for a key", "the disc waits for a key", "a b ret", "it has a"}, // a BIOS may keep the last letter to itself
	} {
		t.Run(c.image, func(t *testing.T) {
			s := s.in(t)
			s.lodge("launch", c.image, "g", "--model", "vm", "--network", "none", "--memory", "64MiB", "--disk", "64MiB")
			s.says("g", c.says)
			s.stuck("g", c.why, c.last)
			if c.keys != "" {
				s.lodge(append([]string{"sendkey", "g"}, strings.Fields(c.keys)...)...)
				s.says("g", c.then)
			}
			if g := s.guest("g"); g.Phase != "running" {
				t.Errorf("phase %s", g.Phase)
			}
			s.lodge("stop", "--force", "g")
			s.lodge("rm", "g")
		})
	}
}

// TestDisksAreForMachines: what cannot run a disk, or is none, is refused
// before anything is made.
func TestDisksAreForMachines(t *testing.T) {
	need(t, "qemu-img")
	s := newServer(t)
	s.lodge("image", "build", "empty")
	s.refused(1, []string{"empty", "disk", "--model vm"}, "launch", "empty", "g")
	s.refused(1, []string{"command"}, "launch", "empty", "g", "--model", "vm", "--", "/bin/sh")
	dir := t.TempDir()
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "base"), "10M")
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(dir, "base"), "-F", "qcow2", filepath.Join(dir, "over"))
	s.refused(1, []string{"file", "backing file", "qemu-img convert"}, "image", "import", filepath.Join(dir, "over"), "over")
	if all := list[api.Image](s, "image", "ls"); len(all) != 1 || all[0].Name != "empty" || all[0].Disk != "qcow2" {
		t.Errorf("images: %+v", all)
	}
	if all := s.guests(); len(all) != 0 {
		t.Errorf("guests: %+v", all)
	}
	s.lodge("create", "empty", "g", "--model", "vm", "--disk", "64MiB")
	s.refused(1, []string{"disk"}, "model", "g", "os")
	out := filepath.Join(dir, "out")
	s.lodge("image", "export", "empty", out, "--format", "disk")
	program(t, "qemu-img", "check", "-q", "-f", "qcow2", out)
	s.refused(1, []string{"format"}, "image", "export", "empty", out)
}

// TestDebianInstaller boots the installer as it is on Debian's discs.
func TestDebianInstaller(t *testing.T) {
	long(t)
	const dir = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/"
	iso := grubDisc(t, "linux /boot/linux console=ttyS0 priority=low\ninitrd /boot/initrd.gz", dir+"linux", dir+"initrd.gz")
	s := newServer(t)
	s.lodge("launch", "empty", "inst1", "--model", "vm", "--memory", "1GiB", "--disk", "2GiB", "--iso", iso)
	s.says("inst1", "Debian installer main menu")
	s.lodge("stop", "--force", "inst1")
}
