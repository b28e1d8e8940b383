// Package qgatest answers like QEMU's guest agent, for tests: as version 7.2
// does, of which the messages were looked at. Its guest is the machine that the
// test runs on.
package qgatest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// Agent is one agent. The zero value is one that knows all its commands.
type Agent struct {
	Interfaces string                             // the reply to guest-network-get-interfaces
	Systems    int                                // file systems that can be frozen
	Forbidden  string                             // a command that the administrator forbade
	Instead    func(command string) (text string) // if it is not "", what is said instead of the reply

	mu     sync.Mutex
	heard  []string
	frozen bool
	handle int64
	files  map[int64]*os.File
	procs  map[int64]*process
}

type process struct {
	out, err bytes.Buffer
	done     chan struct{}
	state    *os.ProcessState
}

// Heard returns the commands that were carried out, in order.
func (a *Agent) Heard() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.heard...)
}

// request is a command as it is read.
type request struct {
	Execute string `json:"execute"`
	Args    struct {
		ID       int64    `json:"id"`
		Path     string   `json:"path"`
		Arg      []string `json:"arg"`
		Env      []string `json:"env"`
		Input    []byte   `json:"input-data"`
		Capture  bool     `json:"capture-output"`
		Pid      int64    `json:"pid"`
		User     string   `json:"username"`
		Password []byte   `json:"password"`
		Crypted  bool     `json:"crypted"`
		Mode     string   `json:"mode"`
		Handle   int64    `json:"handle"`
		Count    int      `json:"count"`
		Data     []byte   `json:"buf-b64"`
	} `json:"arguments"`
}

// Serve answers on a line until it ends.
func (a *Agent) Serve(line io.ReadWriter) {
	r := bufio.NewReader(line)
	for {
		text, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		if i := bytes.LastIndexByte(text, 0xff); i >= 0 {
			if i > 0 { // half a command stood before
				fmt.Fprintln(line, `{"error": {"class": "GenericError", "desc": "JSON parse error, expecting value"}}`)
			}
			text = text[i+1:]
		}
		var q request
		if json.Unmarshal(text, &q) != nil {
			fmt.Fprintln(line, `{"error": {"class": "GenericError", "desc": "QMP input must be a JSON object"}}`)
			continue
		}
		if err := a.reply(line, q); err != nil {
			return
		}
	}
}

func (a *Agent) reply(line io.Writer, q request) error {
	a.mu.Lock()
	a.heard = append(a.heard, q.Execute)
	a.mu.Unlock()
	if a.Instead != nil {
		if text := a.Instead(q.Execute); text != "" {
			_, err := io.WriteString(line, text)
			return err
		}
	}
	switch q.Execute {
	case "guest-sync-delimited":
		_, err := fmt.Fprintf(line, "\xff{\"return\": %d}\n", q.Args.ID)
		return err
	case "guest-shutdown":
		return nil
	}
	result, err := a.carryOut(q)
	if err != nil {
		text, _ := json.Marshal(err.Error())
		_, err = fmt.Fprintf(line, `{"error": {"class": "GenericError", "desc": %s}}`+"\n", text)
		return err
	}
	text, err := json.Marshal(map[string]any{"return": result})
	if err != nil {
		return err
	}
	_, err = line.Write(append(text, '\n'))
	return err
}

// commands are those that guest-info lists.
const commands = "guest-sync-delimited guest-info guest-exec guest-exec-status guest-network-get-interfaces guest-shutdown guest-set-time " +
	"guest-set-user-password guest-ssh-add-authorized-keys guest-fstrim guest-fsfreeze-status guest-fsfreeze-freeze guest-fsfreeze-thaw guest-file-open guest-file-read guest-file-write guest-file-close"

type object map[string]any

func (a *Agent) carryOut(q request) (any, error) {
	if q.Execute == a.Forbidden {
		//lint:ignore ST1005 the real agent says it so
		return nil, fmt.Errorf("Command %s has been disabled: the command is not allowed", q.Execute)
	}
	switch q.Execute {
	case "guest-info":
		var all []object
		for c := range strings.FieldsSeq(commands) {
			all = append(all, object{"name": c, "enabled": c != a.Forbidden, "success-response": c != "guest-shutdown"})
		}
		return object{"version": "7.2.22", "supported_commands": all}, nil
	case "guest-network-get-interfaces":
		return json.RawMessage(a.Interfaces), nil
	case "guest-set-time":
		return object{}, nil
	case "guest-set-user-password", "guest-ssh-add-authorized-keys":
		if q.Args.User != "root" || q.Execute == "guest-set-user-password" && !(q.Args.Crypted && bytes.HasPrefix(q.Args.Password, []byte("$6$"))) {
			return nil, fmt.Errorf("child process has failed to set user password")
		}
		return object{}, nil
	case "guest-fstrim":
		return object{"paths": []object{{"path": "/", "trimmed": 5, "minimum": 0}, {"path": "/boot/efi", "error": "trim not supported"}, {"path": "/srv", "trimmed": 2, "minimum": 0}}}, nil
	case "guest-exec":
		return a.start(q)
	case "guest-exec-status":
		return a.status(q.Args.Pid)
	}
	if s, ok := strings.CutPrefix(q.Execute, "guest-fsfreeze-"); ok {
		return a.freezes(s)
	}
	if s, ok := strings.CutPrefix(q.Execute, "guest-file-"); ok {
		return a.file(s, q)
	}
	//lint:ignore ST1005 the real agent says it so
	return nil, fmt.Errorf("The command %s has not been found", q.Execute)
}

func (a *Agent) freezes(what string) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.frozen
	switch what {
	case "status":
		return map[bool]string{true: "frozen", false: "thawed"}[was], nil
	case "freeze":
		a.frozen = true
		return a.Systems, nil
	}
	a.frozen = false
	if was {
		return a.Systems, nil
	}
	return 0, nil
}

func (a *Agent) start(q request) (any, error) {
	c := exec.Command(q.Args.Path, q.Args.Arg...)
	c.Env, c.Stdin = q.Args.Env, bytes.NewReader(q.Args.Input)
	p := &process{done: make(chan struct{})}
	if q.Args.Capture {
		c.Stdout, c.Stderr = &p.out, &p.err
	}
	if err := c.Start(); err != nil {
		//lint:ignore ST1005 the real agent says it so
		return nil, fmt.Errorf("Guest agent command failed, error was 'Failed to execute child process “%s” (%w)'", q.Args.Path, err)
	}
	go func() {
		defer close(p.done)
		_ = c.Wait()
		p.state = c.ProcessState
	}()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.procs == nil {
		a.procs = map[int64]*process{}
	}
	pid := int64(c.Process.Pid)
	a.procs[pid] = p
	return object{"pid": pid}, nil
}

func (a *Agent) status(pid int64) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.procs[pid]
	if p == nil {
		return nil, fmt.Errorf("PID %d does not exist", pid)
	}
	select {
	case <-p.done:
	default:
		return object{"exited": false}, nil
	}
	delete(a.procs, pid)
	r := object{"exited": true}
	if s := p.state.Sys().(syscall.WaitStatus); s.Signaled() {
		r["signal"] = int(s.Signal())
	} else {
		r["exitcode"] = s.ExitStatus()
	}
	if p.out.Len() > 0 {
		r["out-data"] = p.out.Bytes()
	}
	if p.err.Len() > 0 {
		r["err-data"] = p.err.Bytes()
	}
	return r, nil
}

func (a *Agent) file(what string, q request) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if what == "open" {
		flags := os.O_RDONLY
		if q.Args.Mode == "w" {
			flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		}
		f, err := os.OpenFile(q.Args.Path, flags, 0o666)
		if err != nil {
			return nil, fmt.Errorf("failed to open file '%s' (mode: '%s'): %w", q.Args.Path, q.Args.Mode, err)
		}
		if a.files == nil {
			a.files = map[int64]*os.File{}
		}
		a.handle += 1000
		a.files[a.handle] = f
		return a.handle, nil
	}
	f := a.files[q.Args.Handle]
	if f == nil {
		return nil, fmt.Errorf("handle '%d' has not been found", q.Args.Handle)
	}
	switch what {
	case "read":
		b := make([]byte, q.Args.Count)
		n, err := io.ReadFull(f, b)
		return object{"count": n, "buf-b64": b[:n], "eof": err != nil}, nil
	case "write":
		n, err := f.Write(q.Args.Data)
		return object{"count": n, "eof": false}, err
	case "close":
		delete(a.files, q.Args.Handle)
		return object{}, f.Close()
	}
	return nil, errors.New("no such thing")
}
