package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

func TestStatusCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errors.New("something"), codes.Unknown},
		{fmt.Errorf("stage: %w", errdefs.ErrNotFound), codes.NotFound},
		{fmt.Errorf("stage: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument},
		{fmt.Errorf("stage: %w", errdefs.ErrAlreadyExists), codes.AlreadyExists},
		{fmt.Errorf("stage: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{fmt.Errorf("stage: %w", errdefs.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("stage: %w", errdefs.ErrNotImplemented), codes.Unimplemented},
		{fmt.Errorf("stage: %w", errdefs.ErrPermissionDenied), codes.PermissionDenied},
		{fmt.Errorf("stage: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("stage: %w", context.Canceled), codes.Canceled},
		{status.Error(codes.ResourceExhausted, "full"), codes.ResourceExhausted},
	} {
		got := toStatus(tt.err)
		if status.Code(got) != tt.want {
			t.Errorf("%v: got %v, want %v", tt.err, status.Code(got), tt.want)
		}
		if tt.err != nil && !strings.Contains(got.Error(), strings.Split(tt.err.Error(), ":")[0]) {
			t.Errorf("%v: the message was lost: %v", tt.err, got)
		}
	}
}

// kubelet looks for these at the very beginning of the message.
func TestReasonsComeFirst(t *testing.T) {
	for _, reason := range reasons {
		err := fmt.Errorf("create container: spec: %w", fmt.Errorf("%w: no such path", reason))
		if got := status.Convert(toStatus(err)).Message(); !strings.HasPrefix(got, reason.Error()) || !strings.Contains(got, "no such path") {
			t.Errorf("%v: %q", reason, got)
		}
	}
}

func TestInterceptorCatchesPanic(t *testing.T) {
	f := Interceptor(slog.New(slog.NewTextHandler(io.Discard, nil)))
	_, err := f(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/x/Y"}, func(context.Context, any) (any, error) { panic("boom") })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
}

func metadata() *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}
}

func TestValidateSandbox(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*runtimeapi.PodSandboxConfig)
		want   string // part of the error; "" for none
	}{
		"good":                {func(*runtimeapi.PodSandboxConfig) {}, ""},
		"no metadata":         {func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, "metadata"},
		"no uid":              {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, "uid"},
		"relative log dir":    {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }, "log_directory"},
		"long hostname":       {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, "hostname"},
		"hostname, two lines": {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\nb" }, "line break"},
		"dns option, 2 lines": {func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{"a\nnameserver 6.6.6.6"}}
		}, "line break"},
		"port too high": {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 65536}} }, "port"},
		"negative port": {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: -1}} }, "port"},
		"group without a user": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{RunAsGroup: &runtimeapi.Int64Value{Value: 1}}}
		}, "run_as_group"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &runtimeapi.PodSandboxConfig{Metadata: metadata()}
			tt.change(c)
			check(t, validateSandbox(c), tt.want)
		})
	}
	check(t, validateSandbox(nil), "config")
}

func TestValidateContainer(t *testing.T) {
	secure := func(sc *runtimeapi.LinuxContainerSecurityContext) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: sc} }
	}
	one := &runtimeapi.Int64Value{Value: 1}
	for name, tt := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		want   string
	}{
		"good":               {func(*runtimeapi.ContainerConfig) {}, ""},
		"log path":           {func(c *runtimeapi.ContainerConfig) { c.LogPath = "ctr/0.log" }, ""},
		"log path up":        {func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../etc/cron.d/x" }, "log_path"},
		"log path absolute":  {func(c *runtimeapi.ContainerConfig) { c.LogPath = "/etc/x" }, "log_path"},
		"no name":            {func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" }, "name"},
		"no image":           {func(c *runtimeapi.ContainerConfig) { c.Image = nil }, "image"},
		"group, no user":     {secure(&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: one}), "run_as_group"},
		"group, user":        {secure(&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: one, RunAsUser: one}), ""},
		"group, user's name": {secure(&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: one, RunAsUsername: "x"}), ""},
		"user twice":         {secure(&runtimeapi.LinuxContainerSecurityContext{RunAsUser: one, RunAsUsername: "x"}), "both"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}}
			tt.change(c)
			check(t, validateContainer(c), tt.want)
		})
	}
	check(t, validateContainer(nil), "config")
}

// check wants an ErrInvalidArgument with the given part, or no error for "".
func check(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case part != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), part)):
		t.Errorf("got %v, want an invalid argument about %q", err, part)
	}
}

func TestTimeout(t *testing.T) {
	for n, want := range map[int64]time.Duration{-1: 0, 0: 0, 30: 30 * time.Second, 1 << 62: 9223372036 * time.Second} {
		if got := timeout(n); got != want {
			t.Errorf("%d: got %v, want %v", n, got, want)
		}
	}
}

func TestMatch(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	for name, ok := range map[string]bool{
		"no selector":   matchLabels(nil, labels),
		"one":           matchLabels(map[string]string{"a": "1"}, labels),
		"empty value":   matchLabels(map[string]string{"b": ""}, labels),
		"other value":   !matchLabels(map[string]string{"a": "2"}, labels),
		"missing empty": !matchLabels(map[string]string{"c": ""}, labels),
		"any id":        matchID("", "abc"),
		"prefix":        matchID("ab", "abc"),
		"other id":      !matchID("b", "abc"),
	} {
		if !ok {
			t.Error(name)
		}
	}
}

// What kubelet refuses to see must not be sent, even for records that can't be read.
func TestBrokenRecordsAreValidMessages(t *testing.T) {
	sb := &sandbox.Sandbox{ID: strings.Repeat("a", 64), State: sandbox.NotReady, Broken: "bit flip", Config: &runtimeapi.PodSandboxConfig{}}
	st := sandboxStatus(sb)
	if st.Id == "" || st.Metadata.GetName() == "" || st.Metadata.GetNamespace() == "" || st.Metadata.GetUid() == "" || st.CreatedAt <= 0 ||
		st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || st.Linux.GetNamespaces().GetOptions() == nil {
		t.Errorf("sandbox: %v", st)
	}
	ctr := &runtime.Container{ID: strings.Repeat("b", 64), State: runtime.Unknown, Config: &runtimeapi.ContainerConfig{}}
	if containerMetadata(ctr).GetName() == "" || containerState(ctr) != runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("container: %v", ctr)
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]struct {
		uid  *runtimeapi.Int64Value
		name string
	}{
		"":              {nil, ""},
		"1002":          {&runtimeapi.Int64Value{Value: 1002}, ""},
		"www-data":      {nil, "www-data"},
		"1003:1004":     {&runtimeapi.Int64Value{Value: 1003}, ""},
		"www-data:1004": {nil, "www-data"},
	} {
		i := &imagestore.Image{ID: "sha256:x", Size: 1, PulledAt: time.Now()}
		i.Config.Config.User = user
		if got := criImage(i); got.GetUid().GetValue() != want.uid.GetValue() || (got.GetUid() == nil) != (want.uid == nil) || got.GetUsername() != want.name {
			t.Errorf("%q: uid %v, name %q", user, got.GetUid(), got.GetUsername())
		}
	}
}
