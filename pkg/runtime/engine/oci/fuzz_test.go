package oci

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

// What an OCI runtime prints, whatever it is, becomes one line of bounded size and a version that a spec may carry.
func FuzzOutput(f *testing.F) {
	f.Add([]byte(`{"level":"error","msg":"runc create failed: unable to start container process"}` + "\n"))
	f.Add([]byte("crun version 1.8.1\nspec: 1.0.0\n+SYSTEMD +SELINUX"))
	f.Add([]byte(`{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.1-dev","linux":{"seccomp":{"enabled":true}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		line := parseLog(bytes.NewReader(b))
		if strings.Contains(line, "\n") || len(line) > maxMessage+len("…") && utf8.Valid(b) {
			t.Errorf("%d bytes: %q", len(line), line)
		}
		c, _ := parseFeatures(b)
		_, ok := parseVersion(c.specVersion(string(b)))
		if !ok {
			t.Errorf("specVersion %q", c.specVersion(string(b)))
		}
		c = capability{version: versionLine(b)}
		if _, ok := parseVersion(c.specVersion("1.2.0")); !ok {
			t.Errorf("specVersion %q", c.specVersion("1.2.0"))
		}
	})
}
