package spec

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as programs count them: glibc and musl keep the first two and three for themselves, and both
// call 34 SIGRTMIN (signal(7)).
const sigRTMin, sigRTMax = unix.Signal(34), unix.Signal(64)

// ParseSignal reads an image's StopSignal: a number, or a name with or without SIG, RTMIN+n and RTMAX-n included.
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > int(sigRTMax) {
			return 0, invalid("signal %q: must be between 1 and %d", s, sigRTMax)
		}
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, base := range map[string]unix.Signal{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0, invalid("signal %q", s)
			}
		}
		if sig := base + unix.Signal(n); sig >= sigRTMin && sig <= sigRTMax {
			return sig, nil
		}
		return 0, invalid("signal %q is not between SIGRTMIN and SIGRTMAX", s)
	}
	switch name { // names for one number that unix does not know
	case "SIGCLD":
		return unix.SIGCHLD, nil
	case "SIGIOT":
		return unix.SIGABRT, nil
	case "SIGPOLL":
		return unix.SIGIO, nil
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, invalid("unknown signal %q", s)
}

// criSignals is in the order of the proto's numbers. The enum's names are not used: they changed between versions.
var criSignals = []unix.Signal{
	0, unix.SIGABRT, unix.SIGALRM, unix.SIGBUS, unix.SIGCHLD, unix.SIGCHLD, unix.SIGCONT, unix.SIGFPE, unix.SIGHUP,
	unix.SIGILL, unix.SIGINT, unix.SIGIO, unix.SIGABRT, unix.SIGKILL, unix.SIGPIPE, unix.SIGIO, unix.SIGPROF, unix.SIGPWR,
	unix.SIGQUIT, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSTOP, unix.SIGSYS, unix.SIGTERM, unix.SIGTRAP, unix.SIGTSTP,
	unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGUSR1, unix.SIGUSR2, unix.SIGVTALRM, unix.SIGWINCH, unix.SIGXCPU,
	unix.SIGXFSZ,
	34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, // SIGRTMIN to SIGRTMIN+15
	50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, // SIGRTMAX-14 to SIGRTMAX
}

// CRISignal is the kernel's number of a CRI signal; 0 for RUNTIME_DEFAULT.
func CRISignal(s runtimeapi.Signal) (unix.Signal, error) {
	if s < 0 || int(s) >= len(criSignals) {
		return 0, invalid("unknown stop_signal %d", s)
	}
	return criSignals[s], nil
}

// SignalCRI is the CRI's number of a kernel signal, for ContainerStatus.stop_signal. Where two names share a number
// the usual one is taken; a signal that the CRI has no number for is RUNTIME_DEFAULT.
func SignalCRI(sig unix.Signal) runtimeapi.Signal {
	for i, s := range criSignals {
		if s == sig {
			return runtimeapi.Signal(i)
		}
	}
	return runtimeapi.Signal(0)
}
