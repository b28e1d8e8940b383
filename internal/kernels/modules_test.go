package kernels

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"lodge/internal/base/errs"
)

// module is an ELF file with nothing but the section .modinfo.
func module(t *testing.T, info string) []byte {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	const header, entry = 64, 64
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: header, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: header + uint64(len(info)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	must(t, binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: header + uint64(len(info)+len(names)), Ehsize: header, Shentsize: entry, Shnum: uint16(len(sections)), Shstrndx: 2,
	}))
	b.WriteString(info + names)
	must(t, binary.Write(&b, binary.LittleEndian, sections))
	return b.Bytes()
}

func TestModulesComeInTheOrderOfTheirDependencies(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	deep := filepath.Join(from, "kernel/drivers")
	must(t, os.MkdirAll(deep, 0o755))
	must(t, os.WriteFile(filepath.Join(from, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\n"), 0o644))
	ring := module(t, "license=GPL\x00depends=\x00name=virtio_ring\x00")
	must(t, os.WriteFile(filepath.Join(deep, "virtio_ring.ko"), ring, 0o644))
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	must(t, err)
	_, err = z.Write(module(t, "depends=virtio-ring\x00"))
	must(t, err)
	must(t, z.Close())
	must(t, os.WriteFile(filepath.Join(deep, "virtio.ko.zst"), packed.Bytes(), 0o644))
	var squeezed bytes.Buffer
	x, err := xz.NewWriter(&squeezed)
	must(t, err)
	rng := module(t, "softdep=pre: crc32c\x00depends=virtio_ring,virtio\x00")
	_, err = x.Write(rng)
	must(t, err)
	must(t, x.Close())
	must(t, os.WriteFile(filepath.Join(deep, "virtio-rng.ko.xz"), squeezed.Bytes(), 0o644))
	must(t, os.WriteFile(filepath.Join(deep, "lone.ko"), module(t, "depends=nobody\x00"), 0o644))

	m, err := FindModules(from)
	must(t, err)
	order, err := m.Copy(to, []string{"virtio_rng", "ext4"}, []string{"virtio", "not_there"})
	must(t, err)
	if want := []string{"modules/virtio_ring.ko", "modules/virtio.ko", "modules/virtio_rng.ko"}; !slices.Equal(order, want) {
		t.Errorf("got  %v\nwant %v", order, want)
	}
	if content(t, filepath.Join(to, "modules/virtio_rng.ko")) != string(rng) {
		t.Error("a compressed module was not unpacked")
	}
	for _, names := range [][]string{{"not_there"}, {"lone"}} {
		if _, err := m.Copy(t.TempDir(), names, nil); !errs.Is(err, errs.Unsupported) {
			t.Errorf("%v: %v", names, err)
		}
	}
}
