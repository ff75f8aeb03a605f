// Package seccomp turns profiles into filters.
//
// RuntimeDefault, Localhost and Parse resolve a profile for one container: a profile in docker's format (conditions
// on capabilities, architecture and kernel version) or in the OCI's. Compile makes the filter: classic BPF, compiled
// by libseccomp, made a fifth as long, which is what the kernel's work at each load depends on, and kept in memory by
// the profile's content, since compiling costs about 20 ms of CPU. All are safe for concurrent use. A profile is hostile input: its size is bounded and what is not understood is refused.
package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxProfile is the largest profile file in bytes; docker's default has 12 KiB.
const MaxProfile = 1 << 20

// RuntimeDefault is docker's default profile for a process whose capability bounding set is caps ("CAP_CHOWN"). The result is
// shared: don't change it.
func RuntimeDefault(caps []string) (*specs.LinuxSeccomp, error) {
	return defaults.of(strings.Join(caps, " "), func() (*specs.LinuxSeccomp, error) { return makeDefault(caps) })
}

func makeDefault(caps []string) (*specs.LinuxSeccomp, error) {
	p, err := moby.GetDefaultProfile(withCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp default profile: %w", err)
	}
	return p, nil
}

// Localhost reads the profile file at path, which must be absolute (CRI SecurityProfile.localhost_ref).
func Localhost(path string, caps []string) (*specs.LinuxSeccomp, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("seccomp profile %q: not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	b, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	p, err := Parse(b, caps)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	return p, nil
}

func read(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxProfile+1))
	if err == nil && len(b) > MaxProfile {
		err = fmt.Errorf("%s is larger than %d bytes: %w", path, MaxProfile, errdefs.ErrInvalidArgument)
	}
	return b, err
}

// Parse reads a profile in docker's or the OCI's JSON format. It returns nil for a profile that has neither a default
// action nor rules: docker takes that as unconfined.
func Parse(b []byte, caps []string) (*specs.LinuxSeccomp, error) {
	var raw moby.Seccomp
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for i, c := range raw.Syscalls {
		if c == nil {
			return nil, fmt.Errorf("syscalls[%d] is null: %w", i, errdefs.ErrInvalidArgument)
		}
	}
	p, err := moby.LoadProfile(string(b), withCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if p == nil {
		return nil, nil
	}
	return p, check(p)
}

func withCaps(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}

// check refuses what would otherwise fail or be ignored when the filter is loaded.
func check(p *specs.LinuxSeccomp) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf(format+": %w", append(a, errdefs.ErrInvalidArgument)...)
	}
	notify := p.ListenerPath != "" || p.DefaultAction == specs.ActNotify
	if _, ok := actions[p.DefaultAction]; !ok && !notify {
		return bad("unknown defaultAction %q", p.DefaultAction)
	}
	for _, a := range p.Architectures {
		if _, ok := arches[a]; !ok {
			return bad("unknown architecture %q", a)
		}
	}
	for _, f := range p.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow,
			specs.LinuxSeccompFlagWaitKillableRecv:
		default:
			return bad("unknown flag %q", f)
		}
	}
	for _, c := range p.Syscalls {
		notify = notify || c.Action == specs.ActNotify
		if _, ok := actions[c.Action]; !ok && c.Action != specs.ActNotify {
			return bad("unknown action %q for %v", c.Action, c.Names)
		}
		for _, n := range c.Names {
			if n == "" {
				return bad("empty syscall name")
			}
		}
		for _, a := range c.Args {
			if _, ok := operators[a.Op]; !ok || a.Index > 5 {
				return bad("argument %d with operator %q for %v", a.Index, a.Op, c.Names)
			}
		}
	}
	if notify {
		return fmt.Errorf("%s needs a listener that answers for the container, which is not supported: %w",
			specs.ActNotify, errdefs.ErrNotImplemented)
	}
	return nil
}
