package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// The checks of single values.

func notEmpty(s string) error {
	if s == "" {
		return fmt.Errorf("must not be empty")
	}
	return nil
}

func emptyOr(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

func absolute(s string) error {
	if !filepath.IsAbs(s) || filepath.Clean(s) != s || s == "/" || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%q is no absolute, clean path", s)
	}
	return nil
}

func socketPath(s string) error {
	if len(s) > 107 { // sun_path, unix(7)
		return fmt.Errorf("%q has more than 107 bytes, the most for a socket", s)
	}
	return absolute(s)
}

func cidr(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Masked() != p {
		return fmt.Errorf("%q is no address range such as 10.85.0.0/16", s)
	}
	return nil
}

func hostPort(s string) error {
	if _, err := netip.ParseAddrPort(s); err != nil {
		return fmt.Errorf("%q is no address and port such as 127.0.0.1:0", s)
	}
	return nil
}

// interfaceName as the kernel's dev_valid_name has it.
func interfaceName(s string) error {
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n\v\f\r") {
		return fmt.Errorf("%q is no interface name of 1 to 15 characters", s)
	}
	return nil
}

func feature(s string) error {
	of := []string{"recursive_read_only_mounts", "user_namespaces"}
	if !slices.Contains(of, s) {
		return fmt.Errorf("%q is none of %s%s", s, strings.Join(of, ", "), suggest(s, of))
	}
	return nil
}
