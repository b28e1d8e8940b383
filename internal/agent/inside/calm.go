package inside

import (
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slack is how much later than it wanted a thread of the agent may be woken by
// the clock, in nanoseconds. Go's runtime has one that looks each 20 microseconds
// whether another hangs as soon as anything happens, and where the processor is
// made by translation such a look costs more than what it looks at.
const slack = 10_000_000

// usualSlack is the kernel's for programs.
const usualSlack = 50_000

// calm makes the agent give way to the guest's programs: it is woken by the
// clock no more than needed, and never in place of a program that runs when
// that does something the agent waits for. So a short program runs from its
// start to its end at once, and the agent finds all that it said together.
func (a *Agent) calm() {
	runtime.GOMAXPROCS(1) // it has little to do, and each switch of threads costs
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads { // those that come later inherit it
		_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(strconv.Itoa(slack)), 0)
		if id, err := strconv.Atoi(t.Name()); err == nil {
			schedule(id, unix.SCHED_BATCH)
		}
	}
	a.starter.calm = true
}

// schedule sets how a thread, or this one if it is 0, gets time.
func schedule(thread int, policy uintptr) {
	var priority int32
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(thread), policy, uintptr(unsafe.Pointer(&priority)))
}

// setSlack sets this thread's slack.
func setSlack(nanoseconds uintptr) {
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, nanoseconds, 0)
}
