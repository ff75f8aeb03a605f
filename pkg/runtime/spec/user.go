package spec

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// setUser finds the user and groups. The order: run_as_username, run_as_user, the image's user, root; run_as_group
// replaces the user's primary group. The primary group is always among the additional ones, so that it can't be shed
// by a set-group-id program's negative permission.
func setUser(in *Input, s *specs.Spec) error {
	sc := in.security()
	name, err := userString(sc.GetRunAsUsername(), sc.GetRunAsUser(), sc.GetRunAsGroup())
	if err != nil {
		return err
	}
	if name == "" {
		name = in.Image.User
	}
	db := accounts{files: in.Files}
	u, err := db.resolve(name)
	if err != nil {
		return err
	}
	groups := []uint32{u.gid}
	for _, g := range sc.GetSupplementalGroups() {
		gid, err := id(g)
		if err != nil {
			return fmt.Errorf("supplemental group: %w", err)
		}
		groups = append(groups, gid)
	}
	switch policy := sc.GetSupplementalGroupsPolicy(); policy {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		more, err := db.groupsOf(u)
		if err != nil {
			return err
		}
		groups = append(groups, more...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return fmt.Errorf("supplemental_groups_policy %d: %w", policy, errdefs.ErrNotImplemented)
	}
	rest := groups[1:]
	slices.Sort(rest)
	groups = append(groups[:1:1], slices.DeleteFunc(slices.Compact(rest), func(g uint32) bool { return g == u.gid })...)
	s.Process.User = specs.User{UID: u.uid, GID: u.gid, AdditionalGids: groups}
	if !hasEnv(s.Process.Env, "HOME") {
		// As OCI runtimes do; programs rely on it.
		home := u.home
		if home == "" {
			home = "/"
		}
		s.Process.Env = append(s.Process.Env, "HOME="+home)
	}
	return nil
}

// userString is the CRI's user as "user" or "user:group".
func userString(name string, uid, gid *runtimeapi.Int64Value) (string, error) {
	if name == "" && uid == nil {
		if gid != nil {
			return "", invalid("run_as_group %d is set without run_as_user or run_as_username", gid.GetValue())
		}
		return "", nil
	}
	if name != "" && uid != nil {
		return "", invalid("run_as_user %d and run_as_username %q are both set", uid.GetValue(), name)
	}
	if strings.ContainsAny(name, ":\n\x00") {
		return "", invalid("run_as_username %q is not a user name", name)
	}
	if uid != nil {
		n, err := id(uid.GetValue())
		if err != nil {
			return "", fmt.Errorf("run_as_user: %w", err)
		}
		name = strconv.FormatUint(uint64(n), 10)
	}
	if gid != nil {
		n, err := id(gid.GetValue())
		if err != nil {
			return "", fmt.Errorf("run_as_group: %w", err)
		}
		name += ":" + strconv.FormatUint(uint64(n), 10)
	}
	return name, nil
}

// id checks a uid or gid. Kubernetes allows 0 to 2^31-1; what is beyond must not wrap round to root.
func id(n int64) (uint32, error) {
	if n < 0 || n > math.MaxInt32 {
		return 0, invalid("id %d: must be between 0 and %d", n, math.MaxInt32)
	}
	return uint32(n), nil
}

// numeric tells whether s is a number; an out-of-range number is an error, never a name.
func numeric(s string) (n uint32, ok bool, err error) {
	digits := strings.TrimLeft(s, "+-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, true, invalid("id %q is out of range", s)
	}
	n, err = id(v)
	return n, true, err
}
