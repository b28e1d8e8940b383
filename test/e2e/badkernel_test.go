package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadKernels damages the kernels that guests boot. Each guest says what is
// wrong, ends when it is forced to, and boots when its kernel is whole again;
// nobody else notices.
func TestBadKernels(t *testing.T) {
	s := newModels(t, "--template-memory", "0", "--standby-memory", "0")
	s.lodge("launch", "busybox", "good", "--memory", "32MiB")
	for model, kernel := range map[string]string{"paravirt": umKernel, "vm": linuxKernel} {
		path := s.path(filepath.Join("data/kernels", kernel, "kernel"))
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		noise := make([]byte, len(whole))
		rand.Read(noise)
		s.lodge("launch", "busybox", model, "--model", model, "--memory", "128MiB")
		for damage, content := range map[string][]byte{"empty": nil, "noise": noise, "cut": whole[:len(whole)/2]} {
			t.Run(model+", "+damage, func(t *testing.T) {
				s := s.in(t)
				s.lodge("stop", "--force", model)
				s.replace(path, content)
				s.try("start", model, "--no-wait")
				until(t, "it is told that it does not boot", func() error {
					if g := s.guest(model); g.Problem == nil || g.Problem.Hint == "" {
						return fmt.Errorf("it is %s: %+v", g.Phase, g.Problem)
					}
					return nil
				})
				shown := s.lodge("show", model)
				t.Log(shown)
				if !strings.Contains(shown, "damaged") && !strings.Contains(shown, "qemu: ") {
					t.Error("nobody is told what is wrong")
				}
				s.lodge("exec", "good", "--", "true")
				s.lodge("stop", "--force", model)
				s.replace(path, whole)
				s.lodge("start", model)
				s.answers(model)
				if g := s.guest(model); g.Problem != nil {
					t.Errorf("it is well and has %+v", g.Problem)
				}
			})
		}
		s.lodge("rm", "-f", model)
	}
	s.lodge("rm", "-f", "--all")
	s.noLeaks()
}

// replace gives a file another content, as an update does: who has the old one
// open keeps it.
func (s *server) replace(path string, content []byte) {
	s.t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.WriteFile(path+".new", content, info.Mode())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}
