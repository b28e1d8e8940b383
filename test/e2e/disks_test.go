package e2e

import (
	le "encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"lodge/internal/base/tool/apt"
	"lodge/test/sandbox"
)

// The disks that tests boot are made here, from Debian's packages: what is on
// them is not Lodge's, as with the disks of those who use it.

// program runs a program of the host.
func program(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// need skips a test where what it boots is not installed.
func need(t testing.TB, files ...string) {
	t.Helper()
	for _, f := range files {
		_, err := os.Stat(f)
		if !strings.HasPrefix(f, "/") {
			_, err = exec.LookPath(f)
		}
		if err != nil {
			t.Skipf("%s is not there: scripts/deps.sh long installs it", f)
		}
	}
}

// grubDisc makes an ISO that starts with GRUB under BIOS and UEFI alike, and
// does the one thing that entry says. files are put into its /boot.
func grubDisc(t testing.TB, entry string, files ...string) string {
	t.Helper()
	need(t, append(files, "grub-mkrescue", "xorriso", "mformat", "/usr/lib/grub/i386-pc", "/usr/lib/grub/x86_64-efi")...)
	dir := t.TempDir()
	boot := filepath.Join(dir, "disc/boot")
	write(t, filepath.Join(boot, "grub/grub.cfg"), grubConfig(entry))
	for _, f := range files {
		program(t, "cp", f, boot)
	}
	iso := filepath.Join(dir, "disc.iso")
	program(t, "grub-mkrescue", "-o", iso, filepath.Join(dir, "disc"))
	return iso
}

// grubConfig has GRUB speak through the firmware, which is seen on the console.
func grubConfig(entry string) string {
	return "insmod all_video\nset timeout=0\nmenuentry it {\n" + entry + "\n}\n"
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// kept makes a file once for all runs of the tests on a machine. A change of
// version makes it anew.
func kept(t testing.TB, name, version string, make func(out string)) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = "/var/tmp"
	}
	dir = filepath.Join(dir, "lodge-test")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, version+"-"+name)
	if _, err := os.Stat(file); err == nil {
		return file
	}
	make(file + ".new")
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	return file
}

// Layout of the disk that debianDisk makes, in sectors of 512 bytes: a boot
// loader before the first partition for BIOS, those in it for UEFI, and the
// system in the second.
const (
	sector               = 512
	espStart, espSectors = 2048, 32 << 11
	sysStart, sysSectors = espStart + espSectors, 1500 << 11
)

// debianDisk makes a disk with Debian 12 on it, installed as its own installer
// does: its kernel, its init, GRUB, and for UEFI what Microsoft and Debian have
// signed. It has QEMU's agent, and cloud-init, which looks for a seed. It asks
// for its addresses, and says on the serial line which it got.
func debianDisk(t testing.TB) string {
	need(t, "mmdebstrap", "mkfs.ext4", "grub-mkimage", "mformat", "mcopy", "qemu-img", "/usr/lib/grub/i386-pc/boot.img")
	return kept(t, "debian.qcow2", "6", func(out string) {
		dir := t.TempDir()
		root, raw := filepath.Join(dir, "root"), filepath.Join(dir, "raw")
		debianRoot(t, root)
		program(t, "truncate", "-s", "0", raw)
		if err := os.Truncate(raw, (sysStart+sysSectors)*sector); err != nil {
			t.Fatal(err)
		}
		program(t, "mkfs.ext4", "-q", "-L", "system", "-d", root, "-E", "offset="+num(sysStart*sector), raw, num(sysSectors/2)+"k")
		bootLoaders(t, raw, root, dir)
		program(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, out)
	})
}

func num(n int) string { return strconv.Itoa(n) }

func debianRoot(t testing.TB, root string) {
	t.Helper()
	t.Setenv("http_proxy", sandbox.Proxy(t))
	args := []string{"mmdebstrap", "--variant=minbase", "--quiet", `--aptopt=APT::Install-Recommends "false"`, `--aptopt=APT::Sandbox::User "root"`,
		"--include=systemd-sysv,udev,dbus,iproute2,linux-image-amd64,initramfs-tools,lz4,qemu-guest-agent,cloud-init,shim-signed,grub-efi-amd64-signed"}
	for _, o := range apt.Options(t.Context()) {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, "bookworm", root)
	for _, m := range apt.Mirrors("/etc/apt", "bookworm") {
		args = append(args, m.Signed())
	}
	program(t, "nice", args...)
	for name, text := range map[string]string{
		"etc/hostname":                     "bare\n",
		"etc/fstab":                        "LABEL=system / ext4 defaults 0 1\n",
		"etc/systemd/network/all.network":  "[Match]\nType=ether\n[Network]\nDHCP=yes\n[Link]\nRequiredForOnline=routable\nRequiredFamilyForOnline=both\n",
		"etc/systemd/system/tell.service":  "[Unit]\nWants=network-online.target\nAfter=network-online.target\n[Service]\nType=oneshot\nStandardOutput=tty\nTTYPath=/dev/ttyS0\nExecStart=/bin/sh -c 'ip -br address show scope global; echo this is bare'\n[Install]\nWantedBy=multi-user.target\n",
		"boot/grub/grub.cfg":               grubConfig("linux /vmlinuz root=LABEL=system console=tty0 console=ttyS0 quiet\ninitrd /initrd.img"),
		"etc/initramfs-tools/conf.d/small": "COMPRESS=lz4\n",
		// On a busy machine its own limits are too narrow for a processor that is imitated.
		"etc/systemd/system.conf.d/patient.conf": "[Manager]\nDefaultTimeoutStartSec=30min\nDefaultDeviceTimeoutSec=30min\n",
	} {
		write(t, filepath.Join(root, name), text)
	}
	for _, unit := range []string{"tell.service", "systemd-networkd.service", "systemd-networkd-wait-online.service"} {
		program(t, "systemctl", "--root="+root, "enable", unit)
	}
}

// bootLoaders puts GRUB on the disk and writes the partition table.
func bootLoaders(t testing.TB, raw, root, dir string) {
	t.Helper()
	early := filepath.Join(dir, "early.cfg")
	write(t, early, "search --label --set=root system\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n")
	core := filepath.Join(dir, "core.img")
	program(t, "grub-mkimage", "-O", "i386-pc", "-o", core, "-c", early, "-p", "/boot/grub",
		"part_msdos", "ext2", "search", "search_label", "normal", "configfile", "linux", "serial", "terminal", "all_video", "echo", "biosdisk")
	esp := raw + "@@" + num(espStart*sector)
	program(t, "mformat", "-i", esp, "-T", num(espSectors), "-h", "64", "-s", "32", "::")
	program(t, "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
	for from, to := range map[string]string{
		filepath.Join(root, "usr/lib/shim/shimx64.efi.signed"):                   "::/EFI/BOOT/BOOTX64.EFI",
		filepath.Join(root, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"): "::/EFI/BOOT/grubx64.efi",
		early: "::/EFI/debian/grub.cfg", // where that GRUB looks
	} {
		program(t, "mcopy", "-i", esp, from, to)
	}
	first, err := os.ReadFile("/usr/lib/grub/i386-pc/boot.img")
	if err != nil {
		t.Fatal(err)
	}
	rest, err := os.ReadFile(core)
	if err != nil {
		t.Fatal(err)
	}
	if len(rest) > (espStart-1)*sector {
		t.Fatalf("GRUB has %d bytes, more than fit before the first partition", len(rest))
	}
	le.LittleEndian.PutUint16(first[0x66:], 0x9090) // as grub-install does for hard disks
	clear(first[440:510])                           // code for floppies
	partition(first[446:], 0xef, espStart, espSectors)
	partition(first[462:], 0x83, sysStart, sysSectors)
	first[510], first[511] = 0x55, 0xaa
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(append(first, rest...), 0); err != nil {
		t.Fatal(err)
	}
}

// partition writes one entry of a partition table.
func partition(at []byte, kind byte, start, size uint32) {
	copy(at, []byte{0, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff})
	le.LittleEndian.PutUint32(at[8:], start)
	le.LittleEndian.PutUint32(at[12:], size)
}
