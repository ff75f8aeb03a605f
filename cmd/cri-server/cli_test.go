package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/inspect"
)

// fakeCRI is a server with two pods, two containers and an image.
type fakeCRI struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	notReady bool
}

func (fakeCRI) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "cri-server", RuntimeVersion: "1.2.3"}, nil
}

func (f fakeCRI) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: !f.notReady, Reason: "NoConfig", Message: "no config found"},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{}, {Name: "native"}},
	}, nil
}

func (fakeCRI) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func (fakeCRI) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Id: "abc111", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default"}},
		{Id: "abc222", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "other"}, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}}, nil
}

func (fakeCRI) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all := []*runtimeapi.Container{
		{Id: "fff2", PodSandboxId: "abc111", CreatedAt: 2, Metadata: &runtimeapi.ContainerMetadata{Name: "second"}, State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		{Id: "fff1", PodSandboxId: "abc111", CreatedAt: 1, Metadata: &runtimeapi.ContainerMetadata{Name: "first"}, State: runtimeapi.ContainerState_CONTAINER_EXITED},
	}
	if id := r.GetFilter().GetPodSandboxId(); id != "" && id != "abc111" {
		all = nil
	}
	return &runtimeapi.ListContainersResponse{Containers: all}, nil
}

func info(v any) map[string]string {
	b, _ := json.Marshal(v)
	return map[string]string{"info": string(b)}
}

func (fakeCRI) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return &runtimeapi.PodSandboxStatusResponse{Info: info(inspect.Pod{ID: r.PodSandboxId, Name: "web", Namespace: "default",
		Namespaces: []inspect.Namespace{{Type: "net", Inode: 4026532000, Shared: "own", Path: "/run/netns/cri-abc111"}}})}, nil
}

func (fakeCRI) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{Info: info(inspect.Container{ID: r.ContainerId, Name: "name-" + r.ContainerId})}, nil
}

var nginx = &runtimeapi.Image{Id: "sha256:0123456789abcdef", RepoTags: []string{"nginx:1", "a:2"}, Size: 1500000, Pinned: true}

func (fakeCRI) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{nginx, {Id: "sha256:ff", RepoDigests: []string{"x@sha256:1"}, Size: 5}}}, nil
}

func (fakeCRI) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{
		{UsedBytes: &runtimeapi.UInt64Value{Value: 2e9}, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/data"}}}}, nil
}

func (fakeCRI) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if r.GetImage().GetImage() != "nginx:1" {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: nginx, Info: map[string]string{"info": `{"a":1}`, "odd": "{"}}, nil
}

func (fakeCRI) RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (fakeCRI) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if a := r.GetAuth(); a != nil && (a.Username != "u" || a.Password != "secret") {
		return nil, status.Error(codes.PermissionDenied, "bad credentials")
	}
	if r.GetImage().GetImage() == "none" {
		return nil, status.Error(codes.NotFound, "manifest: none: not found")
	}
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:1"}, nil
}

// serveFake returns a --socket argument for f.
func serveFake(t *testing.T, f *fakeCRI) []string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(g, f)
	runtimeapi.RegisterImageServiceServer(g, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return []string{"--socket", filepath.Join(dir, "s"), "--state", dir}
}

func cli(t *testing.T, in io.Reader, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(in)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestQueries(t *testing.T) {
	at := serveFake(t, &fakeCRI{})
	for name, tc := range map[string]struct {
		args []string
		in   string
		want []string // in the output, or in the error
		fail bool
	}{
		"status":            {args: []string{"status"}, want: []string{"1.2.3", "cgroupfs", "1 notready, 1 ready", "1 exited, 1 running", "2, 2.0 GB in /data"}},
		"status json":       {args: []string{"status", "-o", "json"}, want: []string{`"image_bytes": 2000000000`}},
		"pod":               {args: []string{"inspect", "default/web"}, want: []string{"Pod default/web", "4026532000", "name-fff1", "name-fff2"}},
		"pod by prefix":     {args: []string{"inspect", "abc1", "-o", "json"}, want: []string{`"pod": {`, `"name": "name-fff2"`}},
		"container":         {args: []string{"inspect", "second"}, want: []string{"Container name-fff2"}},
		"container by id":   {args: []string{"inspect", "fff1"}, want: []string{"Container name-fff1"}},
		"ambiguous name":    {args: []string{"inspect", "web"}, fail: true, want: []string{`"web" is more than one: pod default/web abc111, pod other/web abc222`}},
		"ambiguous id":      {args: []string{"inspect", "abc"}, fail: true, want: []string{"is more than one"}},
		"nothing":           {args: []string{"inspect", "zzz"}, fail: true, want: []string{`called "zzz"`}},
		"short prefix":      {args: []string{"inspect", "ff"}, fail: true, want: []string{`called "ff"`}},
		"images":            {args: []string{"image", "list"}, want: []string{"NAME", "a:2", "nginx:1", "0123456789abc", "1.5 MB", "pinned", "x@sha256:1"}},
		"images json":       {args: []string{"image", "ls", "-o", "json"}, want: []string{`"sha256:ff"`}},
		"image inspect":     {args: []string{"image", "inspect", "nginx:1"}, want: []string{`"a": 1`, `"odd": "{"`}},
		"no such image":     {args: []string{"image", "inspect", "x"}, fail: true, want: []string{"there is no image x"}},
		"remove":            {args: []string{"image", "remove", "nginx:1"}},
		"remove nothing":    {args: []string{"image", "rm", "nginx:1", "x"}, fail: true, want: []string{"there is no image x"}},
		"pull":              {args: []string{"image", "pull", "nginx"}, want: []string{"sha256:1"}},
		"pull nothing":      {args: []string{"image", "pull", "none"}, fail: true, want: []string{"manifest: none: not found"}},
		"pull with rights":  {args: []string{"image", "pull", "nginx", "--username", "u", "--password-stdin"}, in: "secret\n", want: []string{"sha256:1"}},
		"pull with wrong":   {args: []string{"image", "pull", "nginx", "--username", "u", "--password-stdin"}, in: "x", fail: true, want: []string{"bad credentials"}},
		"bad output":        {args: []string{"status", "-o", "xml"}, fail: true, want: []string{"neither text nor json"}},
		"admin not there":   {args: []string{"image", "tag", "a", "b"}, fail: true, want: []string{"admin.sock"}},
		"complete commands": {args: []string{"__complete", "ima"}, want: []string{"image\t"}},
		"complete pods":     {args: append([]string{"__complete", "inspect"}, append(at, "")...), want: []string{"default/web", "other/web", "first"}},
		"complete output":   {args: []string{"__complete", "status", "-o", "j"}, want: []string{"json"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := tc.args
			if args[0] != "__complete" {
				args = append(args, at...)
			}
			out, err := cli(t, strings.NewReader(tc.in), args...)
			if (err != nil) != tc.fail {
				t.Fatalf("%v\n%s", err, out)
			}
			if err != nil {
				out = err.Error()
			}
			for _, w := range tc.want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in:\n%s", w, out)
				}
			}
		})
	}
}

func TestStatusOfAServerThatIsNotReady(t *testing.T) {
	out, err := cli(t, nil, append([]string{"status"}, serveFake(t, &fakeCRI{notReady: true})...)...)
	if err == nil || !strings.Contains(err.Error(), "NetworkReady is false: no config found") || !strings.Contains(out, "NO: NoConfig") {
		t.Errorf("%v\n%s", err, out)
	}
	_, err = cli(t, nil, "status", "--socket", "/nonexistent/s", "--state", "/nonexistent")
	if err == nil || err.Error() != "no server answers at /nonexistent/s: dial unix /nonexistent/s: connect: no such file or directory" {
		t.Error(err)
	}
}

func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("lgo_level = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	for line, want := range map[string]int{
		"version":                         0,
		"":                                0,
		"serv":                            exitUsage,
		"serve x":                         exitUsage,
		"serve --no-such-flag":            exitUsage,
		"serve --log-level=loud":          exitUsage,
		"inspect":                         exitUsage,
		"image pull":                      exitUsage,
		"image pull a --username u":       exitUsage,
		"config validate x":               exitUsage,
		"serve --config /nonexistent":     exitFailed,
		"serve --config " + bad:           exitFailed,
		"config validate --config " + bad: exitFailed,
		"config dump --config /dev/null":  0,
		"image import /nonexistent":       exitFailed,
		"config validate --config /dev/null --monitor=/nonexis": exitFailed,
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		os.Stderr = w
		stdout := os.Stdout
		os.Stdout, _ = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		got := run(strings.Fields(line))
		os.Stdout = stdout
		w.Close()
		said, _ := io.ReadAll(r)
		if got != want {
			t.Errorf("%q: exit code %d, not %d: %s", line, got, want, said)
		}
		if got != 0 && !strings.HasPrefix(string(said), "cri-server: ") {
			t.Errorf("%q says %q", line, said)
		}
	}
}

func TestConfigCommands(t *testing.T) {
	for args, want := range map[string]string{
		"config default": "#log_level = \"info\"",
		"config docs":    "| `log_level` | `--log-level` |",
		"config dump --config /dev/null --log-level warn --origin": "log_level = \"warn\" # flag --log-level",
		"config validate --config /dev/null":                       "The configuration is good.",
		"config":                                                   "Available Commands",
	} {
		out, err := cli(t, nil, strings.Fields(args)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
}

func TestExportFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.tar")
	if err := exportFile(path, func(w io.Writer) error { _, err := io.WriteString(w, "tar"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := exportFile(path, func(w io.Writer) error { _, _ = io.WriteString(w, "half"); return errors.New("cut") }); err == nil {
		t.Fatal("no error")
	}
	if b, _ := os.ReadFile(path); string(b) != "tar" {
		t.Errorf("%s", b)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("%v", list)
	}
}
