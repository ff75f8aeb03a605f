package spec

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SELinuxOption: each field by itself; where SELinux is off they are of no consequence.
func TestSELinuxOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		o    *runtimeapi.SELinuxOption
		want []string
	}{
		"none": {nil, nil}, "user": {&runtimeapi.SELinuxOption{User: "u"}, []string{"user:u"}}, "role": {&runtimeapi.SELinuxOption{Role: "r"}, []string{"role:r"}},
		"type": {&runtimeapi.SELinuxOption{Type: "t"}, []string{"type:t"}}, "level": {&runtimeapi.SELinuxOption{Level: "s0:c1,c2"}, []string{"level:s0:c1,c2"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := selinuxOptions(tt.o); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			in := input(t)
			in.Container.Linux.SecurityContext.SelinuxOptions = tt.o
			s, err := Container(in)
			if err != nil || s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "" {
				t.Errorf("without SELinux: %v %v", s, err)
			}
		})
	}
}
