package cgroupdriver

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // sets cgroups.DevicesSetV2
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deviceRule checks a rule. An empty type means all, a missing number any.
func deviceRule(r specs.LinuxDeviceCgroup) (*devices.Rule, error) {
	bad := func() (*devices.Rule, error) {
		return nil, fmt.Errorf("device rule %+v: %w", r, errdefs.ErrInvalidArgument)
	}
	out := &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
		Permissions: devices.Permissions(r.Access), Allow: r.Allow}
	switch r.Type {
	case "", "a":
	case "c", "b":
		out.Type = devices.Type(r.Type[0])
	default:
		return bad()
	}
	if strings.Trim(r.Access, "rwm") != "" {
		return bad()
	}
	if r.Access == "" {
		out.Permissions = "rwm"
	}
	for _, n := range []struct {
		from *int64
		to   *int64
	}{{r.Major, &out.Major}, {r.Minor, &out.Minor}} {
		if n.from != nil {
			if *n.from < -1 {
				return bad()
			}
			*n.to = *n.from
		}
	}
	if out.Type == devices.WildcardDevice && (out.Major != -1 || out.Minor != -1 || len(out.Permissions) != 3) {
		return nil, fmt.Errorf("device rule %+v: type a takes no numbers and all of rwm: %w", r, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// devicesV1 writes the rules in order, through one fd for each of the two files.
func devicesV1(dir string, rules []specs.LinuxDeviceCgroup) error {
	fds := map[string]int{}
	for _, file := range []string{"devices.allow", "devices.deny"} {
		fd, err := open(dir+"/"+file, unix.O_WRONLY)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir + "/" + file, Err: err}
		}
		defer unix.Close(fd)
		fds[file] = fd
	}
	number := func(n int64) string {
		if n == devices.Wildcard {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	for _, r := range rules {
		rule, err := deviceRule(r)
		if err != nil {
			return err
		}
		file := "devices.deny"
		if rule.Allow {
			file = "devices.allow"
		}
		line := "a"
		if rule.Type != devices.WildcardDevice {
			line = string(rule.Type) + " " + number(rule.Major) + ":" + number(rule.Minor) + " " + string(rule.Permissions)
		}
		if _, err := unix.Write(fds[file], []byte(line)); err != nil {
			return fmt.Errorf("write %q to %s/%s: %w", line, dir, file, err)
		}
	}
	return nil
}

// devicesV2 attaches a BPF program (bpf(2) BPF_CGROUP_DEVICE, Linux 4.15), in place of one that is there.
func devicesV2(dir string, rules []specs.LinuxDeviceCgroup) error {
	res := &cgroups.Resources{}
	for _, r := range rules {
		rule, err := deviceRule(r)
		if err != nil {
			return err
		}
		res.Devices = append(res.Devices, rule)
	}
	if err := cgroups.DevicesSetV2(dir, res); err != nil {
		return fmt.Errorf("device filter of %s: %w", dir, err)
	}
	return nil
}
