package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

// Op is what a message between daemon and keeper is about.
type Op string

// What a daemon asks, each answered by one OpReply with the same id.
const (
	OpHello    Op = "hello"    // -> Instance
	OpVersion  Op = "version"  // -> Version
	OpAdopt    Op = "adopt"    // Record; descriptors as of OpHave; before OpFollow
	OpFollow   Op = "follow"   // OpHave for everything, then the reply; from then on all changes
	OpStart    Op = "start"    // Name, Program without Input, which is the descriptor, if any
	OpForget   Op = "forget"   // Name
	OpAttach   Op = "attach"   // Name; descriptor: where the console's output goes
	OpUpgrade  Op = "upgrade"  // Binary; when it works there is no reply, but the connection ends
	OpWatch    Op = "watch"    // Name, Watch; descriptor: a seccomp listener; known already: nothing
	OpShutdown Op = "shutdown" // only while nothing runs
)

// What a keeper tells.
const (
	OpReply Op = "reply"
	OpHave  Op = "have" // Record; descriptors: pidfd, and the console's master if there is one
	OpExit  Op = "exit" // Record
	OpGone  Op = "gone" // Name was forgotten

	OpWatched   Op = "watched"   // Name, Watch; descriptor: a listener that the keeper answers
	OpUnwatched Op = "unwatched" // Name, Watch: nobody can ask there any more
)

// Socket is the name of the keeper's socket in its directory.
const Socket = "keeper.sock"

// MaxMessage is the most bytes that a message may have. It fits in a socket's
// default send buffer, so a message is never refused for its size.
const MaxMessage = 128 << 10

// maxFiles is the most descriptors that one message carries.
const maxFiles = 4

// Message is one packet of a SOCK_SEQPACKET connection. New fields and new
// operations may be added; none may change or go.
type Message struct {
	ID       uint64   `json:"id,omitempty"` // of a request, and of its reply
	Op       Op       `json:"op"`
	Name     string   `json:"name,omitempty"`
	Program  *Program `json:"program,omitempty"`
	Record   *Record  `json:"record,omitempty"`
	Instance string   `json:"instance,omitempty"` // differs for each keeper that started afresh
	Version  string   `json:"version,omitempty"`  // hash of the keeper's own program
	Binary   string   `json:"binary,omitempty"`   // path of a newer one
	Watch    string   `json:"watch,omitempty"`    // tells a program's listeners apart
	Failure  *Failure `json:"failure,omitempty"`
}

// Failure is an error on the wire.
type Failure struct {
	Kind string `json:"kind"`
	Ref  string `json:"ref,omitempty"`
	Msg  string `json:"msg"`
	Hint string `json:"hint,omitempty"`
}

// Record is all that must be known of a program to go on keeping it: by the
// next keeper, after the one that started it was lost.
type Record struct {
	State
	Ticks   uint64 `json:"ticks"` // when it started, in clock ticks since boot: with Pid it names one process
	Boot    string `json:"boot"`  // the boot of the host that Pid and Ticks belong to
	Console bool   `json:"console,omitempty"`
	Log     string `json:"log,omitempty"`
	LogMax  int64  `json:"log_max,omitempty"`
	Quota   *Quota `json:"quota,omitempty"`
	RootDev uint64 `json:"root_dev,omitempty"` // device number of its root file system; set with Quota
}

// NewFailure puts an error on the wire. The keeper's only client is the daemon,
// so causes are told too.
func NewFailure(err error) *Failure {
	if err == nil {
		return nil
	}
	f := &Failure{Kind: errs.KindOf(err).String(), Msg: err.Error()}
	if e, ok := errors.AsType[*errs.Error](err); ok {
		f.Ref, f.Hint, f.Msg = e.Ref, e.Hint, e.Msg
		if e.Err != nil {
			f.Msg += ": " + e.Err.Error()
		}
	}
	return f
}

// Err is the inverse of NewFailure.
func (f *Failure) Err() error {
	if f == nil {
		return nil
	}
	return &errs.Error{Op: "keeper", Kind: errs.ParseKind(f.Kind), Ref: f.Ref, Msg: f.Msg, Hint: f.Hint}
}

// CheckName refuses names that could not be a file's.
func CheckName(name string) error {
	bad := name == "" || len(name) > 128 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:-", r))
	})
	if bad {
		return errs.Bad("name", fmt.Sprintf("%q cannot name a kept program", name), "use letters, digits, '.', '_', ':' and '-'")
	}
	return nil
}

// Decode reads one packet. What it returns is whole as far as its Op says, so
// that a handler need not check it.
func Decode(packet []byte) (Message, error) {
	var m Message
	if len(packet) > MaxMessage {
		return m, errors.New("keeper: packet is too long")
	}
	if err := json.Unmarshal(packet, &m); err != nil {
		return m, fmt.Errorf("keeper: %w", err)
	}
	switch m.Op {
	case OpStart:
		if m.Program == nil || len(m.Program.Argv) == 0 {
			return m, errors.New("keeper: a start without a program")
		}
		return m, CheckName(m.Name)
	case OpAdopt, OpHave, OpExit:
		if m.Record == nil || m.Record.Pid <= 0 {
			return m, fmt.Errorf("keeper: %s without a record", m.Op)
		}
		return m, CheckName(m.Record.Name)
	case OpForget, OpAttach, OpGone:
		return m, CheckName(m.Name)
	case OpWatch, OpWatched, OpUnwatched:
		if m.Watch == "" {
			return m, fmt.Errorf("keeper: %s without an id", m.Op)
		}
		return m, CheckName(m.Name)
	}
	return m, nil
}

// Send writes one packet with descriptors, which stay the caller's.
func Send(c *net.UnixConn, m Message, fds ...int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return &errs.Error{Op: "keeper." + string(m.Op), Kind: errs.Invalid, Ref: m.Name, Msg: "arguments and environment are too long",
			Hint: fmt.Sprintf("a program's must stay below %d KiB", MaxMessage>>10)}
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, rights, nil)
	return err
}

// Receiver reads packets of one connection.
type Receiver struct {
	conn *net.UnixConn
	buf  []byte
	oob  []byte
}

// NewReceiver returns the reader of c. There may be one for each connection.
func NewReceiver(c *net.UnixConn) *Receiver {
	return &Receiver{conn: c, buf: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// Receive returns the next packet and its descriptors, which become the
// caller's, on failure too there are none left open.
func (r *Receiver) Receive() (Message, []int, error) {
	n, noob, flags, _, err := r.conn.ReadMsgUnix(r.buf, r.oob)
	fds, ferr := parseRights(r.oob[:noob])
	if err == nil {
		err = ferr
	}
	var m Message
	switch {
	case err != nil:
	case n == 0:
		err = net.ErrClosed
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("keeper: packet was cut off")
	default:
		m, err = Decode(r.buf[:n])
	}
	if err != nil {
		CloseAll(fds)
		return Message{}, nil, err
	}
	return m, fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// CloseAll closes descriptors that nobody wants.
func CloseAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// inputFile returns data as a sealed file in memory: the program can neither
// change it nor see it change.
func inputFile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("lodge-input", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "input")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
