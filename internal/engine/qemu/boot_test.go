package qemu

import (
	"strings"
	"testing"
)

// What firmware and boot loaders of Debian 12 wrote to the console.
const (
	biosSays = "SeaBIOS (version 1.16.2-debian-1.16.2-1)\r\nMachine UUID 8b0e\r\n\r\nBooting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"
	grubSays = "SeaBIOS (version 1.16.2)\r\nBooting from DVD/CD...\r\n\x1b[2J\x1b[1;1HWelcome to GRUB!\x1b[3;1Herror: invalid magic number.\x1b[5;1HPress any key to continue..."
)

func TestWhyNothingBoots(t *testing.T) {
	for name, c := range map[string]struct {
		console string
		still   bool
		why     string
		last    string
	}{
		"it may still come":    {"SeaBIOS (version 1)\r\nBooting from Hard Disk...", false, "", ""},
		"nothing to boot":      {biosSays, false, "its BIOS found nothing to boot", "Boot failed: not a bootable disk"},
		"a loader that waits":  {grubSays, true, "it said last: Press any key to continue...", "error: invalid magic number.\nPress"},
		"words in pieces":      {"\x1b[05;02HPress en\x1b[05;10H\x1b[05;11Hter\x1b[6;1H*it\x1b[6;4H", true, "it said last: *it", "Press enter\n*it"},
		"a loader that reads":  {grubSays, false, "", ""},
		"a screen only":        {"", true, "no operating system has started", ""},
		"the firmware's shell": {"\x1b[2J\x1b[01;01HUEFI Interactive Shell v2.2\r\nEDK II\r\n\x1b[1m\x1b[33mShell> ", false, "shows its own shell", "EDK II"},
		"nobody signed it":     {"BdsDxe: loading Boot0001 \"UEFI QEMU DVD-ROM\" from PciRoot(0x0)\r\nBdsDxe: failed to load Boot0001 \"UEFI QEMU DVD-ROM\" from PciRoot(0x0): Access Denied\r\n", false, "Secure Boot", "Access Denied"},
		"shim trusts nobody":   {"Verification failed: (0x1A) Security Violation", false, "Secure Boot", "Violation"},
		"no option of UEFI":    {"BdsDxe: No bootable option or device was found.\r\nBdsDxe: Press any key to enter the Boot Manager Menu.", false, "its firmware found nothing to boot", "Press any key"},
	} {
		v := verdict(plain([]byte(c.console)), c.still)
		if (v == nil) != (c.why == "") {
			t.Errorf("%s: %+v", name, v)
		} else if v != nil && (!strings.Contains(v.Why, c.why) || !strings.Contains(v.Last, c.last) || v.Hint == "" || strings.Contains(v.Last, "\x1b")) {
			t.Errorf("%s: %+v", name, *v)
		}
	}
}

func TestWhatIsSaidInThisRun(t *testing.T) {
	for _, c := range []struct {
		text  string
		since int64
		want  string
	}{
		{"old new", 3, "new"}, {"old", 0, ""}, {"all", 99, "all"}, {"rotated", -5, "rotated"},
		{"No bootable device.\nSeaBIOS (version 1)\nBooting", 99, "SeaBIOS (version 1)\nBooting"},
	} {
		if got := string(current([]byte(c.text), c.since)); got != c.want {
			t.Errorf("%q since %d: %q", c.text, c.since, got)
		}
	}
}

// TestWhoHasTheProcessor with registers as QEMU shows them.
func TestWhoHasTheProcessor(t *testing.T) {
	for name, c := range map[string]struct {
		registers string
		system    bool
	}{
		"a BIOS":          {"CPU#0\nEAX=00000000\nGDT=     000f6200 00000037\nIDT=     00000000 000003ff\nCR0=00000010 CR2=00000000 CR3=00000000 CR4=00000000\n", false},
		"GRUB":            {"IDT=     00000000 000003ff\nCR0=00000011 CR2=00000000", false},
		"UEFI":            {"IDT=     000000001f6ee018 00000fff\nCR0=80010033 CR2=0000000000000000", false},
		"Linux":           {"IDT=     fffffe0000000000 00000fff\nCR0=80050033 CR2=00007f", true},
		"Linux, 32 bits":  {"IDT=     ff400000 000007ff\nCR0=80050033 CR2=b7f", true},
		"nothing at all":  {"", false},
		"what is no list": {"CR0=zz IDT=", false},
	} {
		if systemIn(c.registers) != c.system {
			t.Errorf("%s: %v", name, !c.system)
		}
	}
}

// FuzzConsole: what a guest writes becomes lines that give no orders to
// anybody's terminal.
func FuzzConsole(f *testing.F) {
	f.Add([]byte(biosSays))
	f.Add([]byte(grubSays))
	f.Add([]byte("\x1b[\x1b[2J\x1b\x1b[1;1H\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v := verdict(plain(b), true)
		if v == nil || strings.ContainsAny(v.Last, "\x1b\r\x00\x7f") {
			t.Errorf("%+v", v)
		}
	})
}

// TestPlain: a cursor that is put where it is already begins no line.
func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"\x1b[01;01H  Booting `it'\n\nthe \x1b[03;04H\x1b[03;05Hdisc waits": "Booting `it'\nthe disc waits",
		"one\x1b[02;01Htwo\x1b[02;04Hthree\x1b[07;04Hfour":                  "one\ntwothree\nfour",
		"\x1b[05;01Hmenu\x1b[06;01H\x1b[05;05H item":                        "menu item",
	} {
		if got := plain([]byte(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}
