package enginetest

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// resize changes limits of a running guest, to others and back. What an engine
// cannot do while the guest runs it refuses, and says so.
func resize(t *testing.T, h *suite) {
	r := h.guest(t)
	z, ok := r.m.(engine.Resizer)
	if !ok {
		t.Skip("the engine cannot resize guests")
	}
	spec := r.g.Spec
	for _, n := range []int64{70, 50} {
		if h.Processes == nil {
			break
		}
		spec.Processes = n
		if err := z.Resize(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if is := h.Processes(t, r.parts); is != n {
			t.Errorf("the limit of processes is %d, not %d", is, n)
		}
	}
	has := spec.Memory
	for _, n := range []uint64{has * 3 / 4, has} {
		spec.Memory = n
		switch err := z.Resize(t.Context(), spec); {
		case err == nil:
			has = n
		case errs.Is(err, errs.Unsupported) || errs.Is(err, errs.Conflict):
			t.Logf("memory stays as it is: %v", err)
		default:
			t.Fatal(err)
		}
		r.g.Spec.Memory = has // as a daemon connects, once the record is changed
		r.connect()
		if u, err := r.m.(engine.Meter).Usage(t.Context()); err != nil || u.MemoryLimit != has {
			t.Errorf("the limit of memory is %d, not %d, %v", u.MemoryLimit, has, err)
		}
	}
}

// throttle checks that a guest gets no more of the processors than it is to.
func throttle(t *testing.T, h *suite) {
	r := h.guest(t)
	z, ok := r.m.(engine.Resizer)
	if !ok {
		t.Skip("the engine cannot resize guests")
	}
	spec := r.g.Spec
	spec.CPUs = 0.5
	if err := z.Resize(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s, _ := r.begin(session.Request{Argv: []string{"sh", "-c", "while :; do :; done"}})
	r.eventually("the guest is throttled", func() bool {
		u, err := r.m.(engine.Meter).Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u.Throttled > 0
	})
	if err := s.Signal(killed); err != nil {
		t.Error(err)
	}
	s.Wait(t.Context())
	if err := z.Resize(t.Context(), r.g.Spec); err != nil {
		t.Error(err)
	}
}

func usage(t *testing.T, h *suite) {
	r := h.guest(t)
	m, ok := r.m.(engine.Meter)
	if !ok {
		t.Skip("the engine cannot tell what guests use")
	}
	before, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	after, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.CPUSeconds <= before.CPUSeconds || after.Memory == 0 || after.Processes == 0 || after.MemoryLimit != r.g.Spec.Memory {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// diskFull fills the guest's disk and makes room again.
func diskFull(t *testing.T, h *suite) {
	r := h.guest(t)
	out, code := r.run(session.Request{Argv: []string{"sh", "-c", "dd if=/dev/zero of=/root/fill bs=64k count=8k"}})
	if code == 0 || !strings.Contains(out, "No space left on device") {
		t.Errorf("half a gigabyte on a disk of 64 MiB: status %d, %q", code, out)
	}
	if out := r.must("wc -c </root/fill; rm /root/fill; sync; echo small >/root/small; cat /root/small; rm /root/small"); !strings.HasSuffix(out, "small") {
		t.Errorf("after room was made: %q", out)
	}
}

// memoryFull takes more memory in the guest than it has, and has the guest go on.
func memoryFull(t *testing.T, h *suite) {
	r := h.guest(t)
	hog := `BEGIN { s = sprintf("%1000000s", "x"); for (i = 0; i < 2000; i++) a[i] = s i; print "all of it" }`
	if out, code := r.run(session.Request{Argv: []string{"awk", hog}}); code == 0 || strings.Contains(out, "all of it") {
		t.Errorf("a program got two gigabytes of a guest with 256 MiB: status %d, %q", code, out)
	}
	r.answers()
}

func files(t *testing.T, h *suite) {
	r := h.guest(t)
	f, ok := r.m.(engine.Filer)
	if !ok {
		t.Skip("the engine cannot carry files")
	}
	large := make([]byte, 3<<20)
	for i := range large {
		large[i] = byte(rand.IntN(256))
	}
	if err := f.Unpack(t.Context(), "/root", smallTree(t, large)); err != nil {
		t.Fatal(err)
	}
	if out := r.shell("cd /root; stat -c '%n %u:%g %a %Y' tree/a; cat tree/link; stat -c %a tree"); out != "tree/a 1000:29 640 1000000000\nhello750" {
		t.Errorf("in the guest it is %q", out)
	}
	if out := r.shell("md5sum </root/tree/large"); !strings.HasPrefix(out, fmt.Sprintf("%x", md5.Sum(large))) {
		t.Errorf("three mebibytes came as %q", out)
	}
	var out bytes.Buffer
	if err := f.Pack(t.Context(), "/root/tree", &out); err != nil {
		t.Fatal(err)
	}
	names, back := readTree(t, &out)
	if len(names) != 4 || names[0] != "tree" {
		t.Errorf("came back: %v", names)
	}
	if !bytes.Equal(back, large) {
		t.Errorf("%d bytes came back for %d, or others", len(back), len(large))
	}
	if err := f.Pack(t.Context(), "/nowhere", io.Discard); !errs.Is(err, errs.NotFound) {
		t.Errorf("packing what is not there: %v", err)
	}
	r.must("rm -r /root/tree")
}

// smallTree is a folder with two files and a link, as a tar stream.
func smallTree(t *testing.T, large []byte) io.Reader {
	t.Helper()
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, e := range []tar.Header{
		{Name: "tree/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1000, Gid: 1000},
		{Name: "tree/a", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 29, Size: 5, ModTime: time.Unix(1_000_000_000, 0)},
		{Name: "tree/large", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(large))},
		{Name: "tree/link", Typeflag: tar.TypeSymlink, Linkname: "a", Mode: 0o777},
	} {
		if err := w.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Name == "tree/large":
			w.Write(large)
		case e.Size > 0:
			io.WriteString(w, "hello")
		}
	}
	w.Close()
	return &in
}

// readTree checks what came back of smallTree and returns the entries' names
// and what is in the large file.
func readTree(t *testing.T, out io.Reader) (names []string, large []byte) {
	t.Helper()
	for tr := tar.NewReader(out); ; {
		e, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, large
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimSuffix(e.Name, "/"))
		if strings.HasSuffix(e.Name, "/a") && (e.Uid != 1000 || e.Gid != 29 || e.Mode&0o777 != 0o640) {
			t.Errorf("came back as %+v", e)
		}
		if strings.HasSuffix(e.Name, "/large") {
			if large, err = io.ReadAll(tr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// env checks that what the record says is in programs' environment.
func env(t *testing.T, h *suite) {
	r := h.boot(t, guest.Spec{Env: map[string]string{"OF": "guest"}})
	if out, _ := r.run(session.Request{Argv: []string{"sh", "-c", "echo $OF $MINE"}, Env: []string{"MINE=call"}}); out != "guest call\n" {
		t.Errorf("said %q", out)
	}
}
