package inside

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// slack is how much later than it wanted a thread of the agent may be woken by
// the clock, in nanoseconds. Go's runtime has one that looks each 20 microseconds
// whether another hangs as soon as anything happens, and where the processor is
// made by translation such a look costs more than what it looks at.
const slack = 10_000_000

// usualSlack is the kernel's for programs.
const usualSlack = 50_000

// calm makes the agent disturb the guest's programs as little as it can.
func (a *Agent) calm() {
	runtime.GOMAXPROCS(1) // it has little to do, and each switch of threads costs
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads { // those that come later inherit it
		_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(strconv.Itoa(slack)), 0)
	}
	a.starter.calm = true
}

// setSlack sets this thread's slack.
func setSlack(nanoseconds uintptr) {
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, nanoseconds, 0)
}
