package dial

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/agent/initrd"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/kernels"
	"lodge/internal/kernels/debian"
	"lodge/internal/model/image"
	"lodge/test/sandbox"
)

// parts is what every guest of a test needs: made once.
type parts struct {
	kernel, libraries, initrd, image, template string
	dir                                        string
}

// kernelsFolder names a folder with a store of kernels in "kernels", as the
// test of package kernels/debian leaves it, so that none is fetched.
const kernelsFolder = "LODGE_TEST_KERNELS"

// kernelName is the kernel that guests boot.
const kernelName = "um/debian-sid"

var made struct {
	once sync.Once
	parts
	skip string
	err  error
}

// umlParts makes an image of the distribution's busybox, an empty layer,
// and the newest kernel with our agent.
func umlParts(t testing.TB) parts {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes device nodes: needs root")
	}
	made.once.Do(func() { made.skip, made.err = made.make() })
	if made.skip != "" {
		sandbox.Missing(t, made.skip)
	}
	must(t, made.err)
	return made.parts
}

func (p *parts) make() (skip string, err error) {
	for program, pkg := range map[string]string{"mkfs.erofs": "erofs-utils", "mkfs.ext4": "e2fsprogs", "busybox": "busybox-static"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is missing: scripts/deps.sh test installs " + pkg, nil
		}
	}
	if p.dir, err = os.MkdirTemp("/tmp", "u"); err != nil { // a short name: see its loader
		return "", err
	}
	script := `
set -e
cd "$1"
mkdir -p tree/bin tree/sbin tree/etc tree/root tree/usr/bin tree/tmp
cp "$(command -v busybox)" tree/bin/busybox
for a in $(tree/bin/busybox --list); do [ $a = busybox ] || ln -s busybox tree/bin/$a; done
ln -s ../bin/busybox tree/sbin/init
printf 'root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n' > tree/etc/passwd
printf 'root:x:0:\nann:x:1000:\naudio:x:29:ann\n' > tree/etc/group
printf 'root:*:19000:0:99999:7:::\nann:!:19000:0:99999:7:::\n' > tree/etc/shadow
chmod 640 tree/etc/shadow
printf '::sysinit:/bin/echo the guest boots\n::shutdown:/bin/echo the guest stops\n' > tree/etc/inittab
ln -s /root/tree/etc/outside tree/etc/resolv.conf
mkfs.erofs --quiet image.erofs tree
truncate -s 64M template.ext4
mkfs.ext4 -q -F template.ext4
rm -r tree
(cd "$2" && go build -trimpath -ldflags '-s -w' -o "$1/lodge-agent" ./cmd/lodge-agent)
`
	top, err := filepath.Abs("../../..")
	if err != nil {
		return "", err
	}
	c := exec.Command("sh", "-c", script, "sh", p.dir, top)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	p.image, p.template = filepath.Join(p.dir, "image.erofs"), filepath.Join(p.dir, "template.ext4")
	if skip, err = p.fetch(); skip != "" || err != nil {
		return skip, err
	}
	return p.probe(), nil
}

// fetch takes the kernel and what it needs out of its packages, as lodged does.
func (p *parts) fetch() (skip string, err error) {
	have := os.Getenv(kernelsFolder)
	store, err := kernels.OpenStore(filepath.Join(cmp.Or(have, p.dir), "kernels"), filepath.Join(p.dir, "lodge-agent"), slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	if have == "" {
		source := debian.New(filepath.Join(p.dir, "cache"))
		if err := source.Check(kernelName); err != nil {
			return err.Error(), nil
		}
		address, closeIt, err := sandbox.OpenProxy()
		if err != nil {
			return err.Error(), nil
		}
		defer closeIt()
		os.Setenv("http_proxy", address)
		defer os.Unsetenv("http_proxy")
		if _, err := store.Build(context.Background(), source, kernelName, func(string, uint64, uint64, string, string) {}); err != nil {
			return "", err
		}
	}
	b, err := store.For(context.Background(), "um", image.Info{}, kernelName)
	if err != nil {
		return "", err
	}
	return "", p.install(b)
}

// install makes the kernel run outside a jail, beside libraries of another
// version: it is told where its loader is, in place of where every program of
// this machine has it.
func (p *parts) install(b kernels.Boot) error {
	const usual = "/lib64/ld-linux-x86-64.so.2\x00"
	p.initrd, p.libraries, p.kernel = b.Initrd, filepath.Dir(b.Support[0]), filepath.Join(p.dir, "kernel")
	loader := filepath.Join(p.dir, "ld") + "\x00"
	if len(loader) > len(usual) {
		return fmt.Errorf("%s is too long for the name of a loader", loader)
	}
	text, err := os.ReadFile(b.Path)
	if err != nil {
		return err
	}
	if bytes.Count(text, []byte(usual)) != 1 {
		return fmt.Errorf("%s does not name its loader", b.Path)
	}
	text = bytes.Replace(text, []byte(usual), []byte(loader+strings.Repeat("\x00", len(usual)-len(loader))), 1)
	return errors.Join(os.WriteFile(p.kernel, text, 0o755), os.Symlink(b.Support[0], filepath.Join(p.dir, "ld")))
}

// command runs the kernel.
func (p *parts) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "taskset", append([]string{"1", "env", "TMPDIR=/dev/shm", "LD_LIBRARY_PATH=" + p.libraries, p.kernel}, args...)...)
}

// probe boots the agent alone, which complains that there is no guest, and
// says why this kernel does not even come as far.
func (p *parts) probe() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := p.command(ctx, "umid=probe", "uml_dir="+p.dir, "mem=64M", "initrd="+p.initrd,
		"con0=null,fd:1", "con=null", "ssl=null", "console=tty0", "panic=1", "noreboot", "quiet", "seccomp=on")
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	out, err := c.CombinedOutput()
	if !bytes.Contains(out, []byte("lodge-agent: ")) {
		return fmt.Sprintf("%s does not run here: %v: %.300s", kernelName, err, out)
	}
	return ""
}

// guest is one that runs.
type umlGuest struct {
	*Link
	cmd     *exec.Cmd
	console *console
	volume  string
	exited  chan struct{}
	began   time.Time
}

// console keeps what a guest says.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// boot starts a guest with a description, on a layer of its own; volume names
// one that an earlier guest left, or "".
func boot(t testing.TB, cfg agent.Config, volume string) *umlGuest {
	t.Helper()
	p := umlParts(t)
	dir := t.TempDir()
	g := &umlGuest{console: &console{}, volume: volume, exited: make(chan struct{}), began: time.Now()}
	if g.volume == "" {
		g.volume = filepath.Join(dir, "volume.ext4")
		if out, err := exec.Command("cp", "--sparse=always", p.template, g.volume).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cfg.Base, cfg.Volume, cfg.Channel, cfg.Credit, cfg.Mailbox = "/dev/ubda", "/dev/ubdb", "/dev/ttyS1", true, "/dev/ubdc"
	archive, err := os.ReadFile(p.initrd)
	must(t, err)
	config, err := initrd.ConfigArchive(cfg)
	must(t, err)
	archive = append(archive, make([]byte, -len(archive)&3)...)
	must(t, os.WriteFile(filepath.Join(dir, "initrd"), append(archive, config...), 0o600))
	fd, err := unix.MemfdCreate("mailbox", unix.MFD_CLOEXEC)
	must(t, err)
	mail := os.NewFile(uintptr(fd), "mailbox")
	must(t, mail.Truncate(8*agent.SlotSize))
	host, line := pair(t)
	screen, theirs := pair(t)
	g.cmd = p.command(context.Background(), "umid="+filepath.Base(dir), "uml_dir="+dir, "mem=128M", "initrd="+filepath.Join(dir, "initrd"),
		"ubd0r="+p.image, "ubd1="+g.volume, "ubd2=/proc/self/fd/5", "con0=fd:3,fd:3", "con=null", "ssl=null", "ssl1=fd:4,fd:4",
		"console=tty0", "panic=1", "noreboot", "quiet", "seccomp=on")
	g.cmd.ExtraFiles = []*os.File{theirs, line, mail}
	g.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	must(t, g.cmd.Start())
	theirs.Close()
	line.Close()
	go func() {
		io.Copy(g.console, screen) // its last words are heard before its end is told
		g.cmd.Wait()
		close(g.exited)
	}()
	g.Link = Open(host, Options{Credit: true, Mailbox: mail})
	t.Cleanup(func() {
		unix.Kill(-g.cmd.Process.Pid, unix.SIGKILL)
		<-g.exited
		g.Link.Close()
		if t.Failed() {
			t.Logf("console:\n%s", g.console)
		}
	})
	return g
}

// minutes is how long a guest may take for anything on a loaded machine.
func minutes(t testing.TB, n int) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// ends waits for the guest's end.
func (g *umlGuest) ends(t testing.TB) {
	t.Helper()
	select {
	case <-g.exited:
	case <-minutes(t, 2).Done():
		t.Fatal("the guest did not end")
	}
}

func ordinary() agent.Config {
	return agent.Config{ID: "0123abcd", Hostname: "web1", Machine: strings.Repeat("ab", 16), Hosts: "127.0.0.1\tlocalhost\n127.0.1.1\tweb1\n",
		Resolver: "# made by lodge; remove this line to keep your own\nnameserver 10.0.0.1\n", DNS: []string{"10.0.0.1"}, Domain: "lodge.internal", Init: []string{"/sbin/init"}}
}

func (g *umlGuest) sh(t testing.TB, script string) string {
	t.Helper()
	code, out, errOut, err := outcome(t, g.Link, session.Request{Argv: []string{"sh", "-c", script}}, nil)
	if err != nil || code != 0 {
		t.Fatalf("%s: %d %q %q %v", script, code, out, errOut, err)
	}
	return strings.TrimSpace(out)
}

func TestAWholeGuest(t *testing.T) {
	g := boot(t, ordinary(), "")
	must(t, g.Await(minutes(t, 3)))
	t.Logf("ready after %v", time.Since(g.began))
	for _, c := range []struct{ script, want string }{
		{"hostname; cat /etc/hostname", "web1\nweb1"},
		{"cat /proc/1/comm", "init"},
		{"cat /etc/.lodge", "0123abcd web1"},
		{"echo $HOME; id -u; tty", "/root\n0\nnot a tty"},
		{"mount | grep -c ' on / type overlay'", "1"},
	} {
		code, out, _, err := outcome(t, g.Link, session.Request{Argv: []string{"sh", "-c", c.script}}, nil)
		if err != nil || strings.TrimSpace(out) != c.want {
			t.Errorf("%s: %d %q %v", c.script, code, out, err)
		}
	}
	must(t, g.Shutdown(minutes(t, 1)))
	g.ends(t)
	if !strings.Contains(g.console.String(), "the guest stops") {
		t.Errorf("the init did not stop cleanly")
	}
}

func TestABrokenGuestSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*agent.Config)
		says   string
	}{
		{"no init", func(c *agent.Config) { c.Init = []string{"/sbin/no-such-init"} }, "lodge-agent: the guest's init /sbin/no-such-init: not found in guest"},
		{"an init that is no program", func(c *agent.Config) { c.Init = []string{"/etc/passwd"} }, "lodge-agent: the guest's init /etc/passwd cannot be run: permission denied"},
		{"no such card", func(c *agent.Config) { c.NICs = []agent.NIC{{Name: "eth0", MAC: "nonsense"}} }, `lodge-agent: network card eth0: "nonsense" is no hardware address`},
		{"no such program", func(c *agent.Config) { c.Init, c.Command = []string{"no-such-program"}, true }, "lodge-agent: the first program ended with status 127"},
		{"a program that ends", func(c *agent.Config) { c.Init, c.Command = []string{"sh", "-c", "echo its own words; exit 42"}, true }, "lodge-agent: the first program ended with status 42"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := ordinary()
			c.change(&cfg)
			g := boot(t, cfg, "")
			g.ends(t)
			if said := g.console.String(); !strings.Contains(said, c.says) || !strings.Contains(said, "reboot: Power down") {
				t.Errorf("the console does not say %q", c.says)
			}
		})
	}
}

// TestACommand: a guest that is there for one program.
func TestACommand(t *testing.T) {
	cfg := ordinary()
	cfg.Init, cfg.Command, cfg.Env = []string{"sh", "-c", `trap 'echo told to stop; exit 3' TERM; echo $GREETING; (sleep 0.1 &) ; while :; do sleep 0.1; done`}, true, map[string]string{"GREETING": "good morning"}
	g := boot(t, cfg, "")
	must(t, g.Await(minutes(t, 3)))
	if name := g.sh(t, "cat /proc/1/cmdline | tr '\\0' ' '"); name != "/init" {
		t.Errorf("process 1 is %q", name)
	}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(g.console.String(), "good morning") && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	must(t, g.Shutdown(minutes(t, 1)))
	g.ends(t)
	for _, want := range []string{"good morning", "told to stop", "lodge-agent: the first program ended with status 3", "reboot: Power down"} {
		if !strings.Contains(g.console.String(), want) {
			t.Errorf("the console does not say %q", want)
		}
	}
}

// TestAGuestStaysItself: a second boot keeps what the guest's owner changed; a
// copy becomes another.
func TestAGuestStaysItself(t *testing.T) {
	cfg := ordinary()
	g := boot(t, cfg, "")
	must(t, g.Await(minutes(t, 3)))
	g.sh(t, "echo mine > /etc/hosts; echo data > /root/kept; sync")
	must(t, g.Shutdown(minutes(t, 1)))
	g.ends(t)

	g = boot(t, cfg, g.volume)
	must(t, g.Await(minutes(t, 3)))
	if got := g.sh(t, "cat /etc/hosts /root/kept"); got != "mine\ndata" {
		t.Errorf("%q", got)
	}
	renewed := cfg
	renewed.ID, renewed.Hostname, renewed.Hosts = "another", "web2", "127.0.1.1\tweb2\n"
	must(t, g.Renew(minutes(t, 1), renewed))
	if got := g.sh(t, "hostname; cat /etc/hostname /etc/hosts /etc/.lodge"); got != "web2\nweb2\n127.0.1.1\tweb2\nanother web2" {
		t.Errorf("%q", got)
	}
	must(t, g.Reboot(minutes(t, 1)))
	g.ends(t)
	if !strings.Contains(g.console.String(), "reboot: Restarting system") {
		t.Error("the console does not say that the guest wants to start anew")
	}
}

func TestVerbsOfAWholeGuest(t *testing.T) {
	g := boot(t, ordinary(), "")
	ctx := minutes(t, 3)
	must(t, g.Await(ctx))
	s, err := g.Stats(ctx)
	if err != nil || s.MemoryTotal < 64<<20 || s.MemoryTotal > 128<<20 || s.Processes < 5 || s.CPUs != 1 || s.DiskTotal == 0 {
		t.Errorf("%+v %v", s, err)
	}
	must(t, g.SetClock(ctx, time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)))
	if got := g.sh(t, "date -u +%Y-%m-%dT%H:%M"); got != "2031-01-02T03:04" {
		t.Errorf("%q", got)
	}
	must(t, g.SetPassword(ctx, "ann", "a secret"))
	shadow := g.sh(t, "cat /etc/shadow; stat -c '%a %u %g' /etc/shadow")
	if !strings.HasPrefix(shadow, "root:*:") || !strings.Contains(shadow, "ann:$6$") || !strings.HasSuffix(shadow, "640 0 0") {
		t.Errorf("%q", shadow)
	}
	if err := g.SetPassword(ctx, "nobody-here", "a secret"); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	must(t, g.Online(ctx, 0))
	for user, want := range map[string]string{"ann": "1000:1000:1000 29:/:ann", "ann:audio": "1000:29:29:/:ann", "65534": "65534:0:0:/:65534", "": "0:0:0:/root:root"} {
		code, out, _, err := outcome(t, g.Link, session.Request{Argv: []string{"sh", "-c", "echo $(id -u):$(id -g):$(id -G):$(pwd):$USER"}, User: user}, nil)
		if err != nil || code != 0 || strings.TrimSpace(out) != want {
			t.Errorf("%q: %q %v, want %q", user, out, err, want)
		}
	}

	must(t, os.Truncate(g.volume, 96<<20)) // UML sees the size a device had when it was opened
	must(t, g.Grow(ctx))

	thaw, err := g.Freeze(ctx, 20*time.Second)
	must(t, err)
	if _, err := g.Freeze(ctx, time.Second); !errs.Is(err, errs.Busy) {
		t.Errorf("a second freeze: %v", err)
	}
	p, err := g.Exec(ctx, session.Request{Argv: []string{"sh", "-c", "echo x > /root/x"}})
	must(t, err)
	stuck, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	done := make(chan int, 1)
	go func() { code, _ := p.Wait(ctx); done <- code }()
	select {
	case <-done:
		t.Error("the guest wrote to a frozen disk")
	case <-stuck.Done():
	}
	must(t, thaw())
	if code := <-done; code != 0 {
		t.Errorf("the write ended with %d", code)
	}
	thaw, err = g.Freeze(ctx, 100*time.Millisecond)
	must(t, err)
	g.sh(t, "echo y > /root/y") // waits until the guest thaws by itself
	if err := thaw(); !errs.Is(err, errs.Busy) {
		t.Errorf("a freeze that was over: %v", err)
	}
}

// BenchmarkUML measures what a guest under User-Mode Linux takes.
func BenchmarkUML(b *testing.B) {
	g := boot(b, ordinary(), "")
	must(b, g.Await(minutes(b, 3)))
	b.Run("ask", func(b *testing.B) {
		for b.Loop() {
			_, err := g.ask(b.Context(), agent.Request{Op: agent.OpOnline}, answerTimeout)
			must(b, err)
		}
	})
	b.Run("exec", func(b *testing.B) {
		for b.Loop() {
			p, err := g.Exec(b.Context(), session.Request{Argv: []string{"/bin/true"}})
			must(b, err)
			_, err = p.Wait(b.Context())
			must(b, err)
		}
	})
	const size = 32 << 20
	g.sh(b, "dd if=/dev/urandom of=/dev/shm/x bs=1M count=32")
	b.Run("pack", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			must(b, g.Pack(b.Context(), "/dev/shm/x", io.Discard))
		}
	})
	var tar bytes.Buffer
	must(b, g.Pack(b.Context(), "/dev/shm/x", &tar))
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			must(b, g.Unpack(b.Context(), "/dev/shm", bytes.NewReader(tar.Bytes())))
		}
	})
}

// TestInputOfAGuest sends a program in a guest much input, by the mailbox.
func TestInputOfAGuest(t *testing.T) {
	g := boot(t, ordinary(), "")
	must(t, g.Await(minutes(t, 3)))
	want := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	began := time.Now()
	code, out, _, err := outcome(t, g.Link, session.Request{Argv: []string{"sh", "-c", "md5sum; wc -c < /dev/null"}}, bytes.NewReader(want))
	t.Logf("%.1f MB/s", float64(len(want))/1e6/time.Since(began).Seconds())
	if sum := fmt.Sprintf("%x  -\n0\n", md5.Sum(want)); err != nil || code != 0 || out != sum {
		t.Errorf("%q, want %q, status %d, %v", out, sum, code, err)
	}
}
