package qemu

import "strings"

// kernelLine is what a kernel is told: where to speak, to end at once when it
// panics, to use plugged memory, and to keep no 64 MiB aside for devices that
// cannot address what is plugged, for there are none.
func (w hardware) kernelLine() string {
	line := "console=tty0 console=ttyS0 panic=-1 memhp_default_state=online swiotlb=noforce"
	if w.Accel == "tcg" {
		line += " " + strings.Join(translatedWords, " ") + " modprobe.blacklist=" + strings.Join(unasked, ",") + masked() + tscWords(w.TSC)
	}
	return line
}

// translatedWords are for a kernel whose instructions are translated, where what
// serves no purpose is a part of every boot.
var translatedWords = []string{
	// All processors count the same ticks, which they take from one counter of the
	// host: else, with room for a second processor, the kernel asks an imitated
	// chip for the time, which is a thousand times slower.
	"tsc=reliable",
	// What keeps a processor from guessing wrongly: the one that guesses runs other
	// instructions than these.
	"mitigations=off",
	// Each level of page tables is a look more wherever memory is first touched
	// after a switch of programs, and four will do.
	"no5lvl",
	// Each letter on the console is a call of the monitor, so the kernel only says
	// there what is wrong; all it says is in its own log.
	"quiet",
	// Ciphers are not tried out before they are used. A kernel in FIPS mode does it
	// all the same.
	"cryptomgr.notests",
	// Ports that devices are plugged into report no errors of their own. ACPI says
	// what is plugged.
	"pcie_ports=compat",
}

// unasked are modules that are loaded by themselves because something could use
// them. Translated, each takes one to four tenths of a second. Who names them to
// modprobe has them.
var unasked = []string{
	// udev loads these because the processor says what it can: for guests of its
	// own, for its clock rate, and for check sums and ciphers that the kernel can
	// do without. Translated they win nothing.
	"kvm_amd", "powernow_k8", "acpi_cpufreq", "aesni_intel", "ghash_clmulni_intel", "polyval_clmulni",
	"crct10dif_pclmul", "crc32_pclmul", "crc32c_intel", "sha1_ssse3", "sha256_ssse3", "sha512_ssse3",
	// systemd loads these in case: iptables loads the first when it runs, and by
	// the other QEMU would pass secrets, which Lodge does not.
	"ip_tables", "qemu_fw_cfg",
	// udev, for mice on serial lines.
	"serio_raw",
}

// notAtBoot are modules that units of systemd only want at boot, and do not
// require. The kernel loads loop and dm_mod when the first program uses them, drm
// comes with drivers that need it, and efi_pstore is for firmware that is not there.
var notAtBoot = []string{"dm_mod", "drm", "efi_pstore", "loop"}

// masked keeps systemd from loading what is not needed at boot. To others these
// words say nothing.
func masked() string {
	var line strings.Builder
	for _, m := range notAtBoot {
		line.WriteString(" systemd.mask=modprobe@" + m + ".service")
	}
	return line.String()
}
