package inside

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// notifySignals takes the signals that ask process 1 to end, or with SIGUSR1 to
// start anew.
func notifySignals(c chan os.Signal) {
	signal.Notify(c, unix.SIGTERM, unix.SIGINT, unix.SIGPWR, unix.SIGUSR1)
}
