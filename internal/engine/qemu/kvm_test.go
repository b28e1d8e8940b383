package qemu

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/kvmprobe"
	"lodge/internal/engine/enginetest"
	"lodge/internal/model/guest"
)

// TestKVMInsideAGuest: the probe of KVM finds it usable where it is, in a guest
// whose imitated processor has AMD's extensions: it runs guests of its own as
// fast as itself.
func TestKVMInsideAGuest(t *testing.T) {
	if os.Getenv("LODGE_TEST_LONG") == "" {
		t.Skip("boots a guest that runs guests, without the help of the processor: set LODGE_TEST_LONG=1")
	}
	r := newRig(t)
	k, _ := enginetest.Keeper(t)
	g, p := r.guest(t, guest.Spec{Memory: 512 << 20, Hardware: guest.Hardware{CPUModel: "qemu64,+svm,+npt"}})
	p.Kernel.Modules = filepath.Join(filepath.Dir(p.Kernel.Path), "modules.erofs")
	x := r.start(t, k, g, p)
	x.ready()
	out := x.shell("cd /usr/lib/modules/*/kernel && insmod virt/lib/irqbypass.ko && insmod arch/x86/kvm/kvm.ko && insmod arch/x86/kvm/kvm-amd.ko; ls /dev/kvm")
	if out != "/dev/kvm" {
		t.Fatalf("the guest has no KVM: %s", out)
	}
	x.put(t, enginetest.Build(t, "lodge/cmd/lodge-keeper"), "/root", "lodge-keeper")
	began := time.Now()
	said := x.shell("/root/lodge-keeper " + kvmprobe.Argument)
	t.Logf("after %v: %s", time.Since(began), said)
	steps := 0
	for d := json.NewDecoder(strings.NewReader(said)); ; steps++ {
		var s kvmprobe.Step
		if err := d.Decode(&s); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if s.Err != "" || s.Ns > kvmprobe.Slow {
			t.Errorf("%+v", s)
		}
	}
	if steps != 3 { // it says first that it begins
		t.Errorf("%d of 2 modes were tried: %s", steps, said)
	}
}

// put copies a file of the host into the guest.
func (x *kept) put(t *testing.T, path, dir, name string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	go func() {
		w := tar.NewWriter(out)
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write(content)
		}
		if err == nil {
			err = w.Close()
		}
		out.CloseWithError(err)
	}()
	if err := x.m.Unpack(t.Context(), dir, in); err != nil {
		t.Fatal(err)
	}
}
