package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// refusal is a call that must fail: with one of codes, with every one of words in the message, and with nothing left.
type refusal struct {
	name  string
	codes []codes.Code
	words []string
	call  func(f *fixture) error
}

func TestBadInput(t *testing.T) {
	f := start(t, testnode.Options{Config: "[image]\npull_stall_timeout = \"1s\"\n"})
	f.pull(images.Busybox, images.BadStop)
	pod := f.podConfig("good")
	id := f.runPod(pod)
	create := func(change func(*cri.ContainerConfig)) func(*fixture) error {
		return func(f *fixture) error {
			c := containerConfig("bad", images.Busybox, "sleep", "1000")
			change(c)
			_, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: c, SandboxConfig: pod})
			return err
		}
	}
	run := func(handler string, change func(*cri.PodSandboxConfig)) func(*fixture) error {
		return func(f *fixture) error {
			p := f.podConfig("bad")
			change(p)
			_, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: p, RuntimeHandler: handler})
			return err
		}
	}
	pull := func(image string, auth *cri.AuthConfig) func(*fixture) error {
		return func(f *fixture) error {
			_, err := f.Image.PullImage(f.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}, Auth: auth})
			return err
		}
	}
	invalid := []codes.Code{codes.InvalidArgument}
	missing := []codes.Code{codes.NotFound}
	denied := []codes.Code{codes.Unauthenticated, codes.PermissionDenied}
	for _, r := range []refusal{
		{"unknown handler", []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"nope"}, run("nope", func(*cri.PodSandboxConfig) {})},
		{"pod without metadata", invalid, []string{"metadata"}, run("", func(p *cri.PodSandboxConfig) { p.Metadata = nil })},
		{"pod with RunAsGroup only", invalid, []string{"run_as_user"}, run("", func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5}
		})},
		{"sysctl of the host's namespace", invalid, []string{"kernel.msgmax"}, run("", func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{"kernel.msgmax": "1"}
			p.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Ipc: cri.NamespaceMode_NODE}
		})},
		{"sysctl that leaves its directory", invalid, []string{"sysctl"}, run("", func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{"net/../kernel/core_pattern": "|/bin/sh"}
		})},
		{"relative log directory", invalid, []string{"log"}, run("", func(p *cri.PodSandboxConfig) { p.LogDirectory = "logs" })},
		{"image that was not pulled", missing, []string{"no/such"}, create(func(c *cri.ContainerConfig) { c.Image.Image = "registry.k8s.io/no/such:1" })},
		{"host path that is not there", []codes.Code{codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition}, []string{"/no/such/host/path"},
			create(func(c *cri.ContainerConfig) {
				c.Mounts = []*cri.Mount{{ContainerPath: "/data", HostPath: "/no/such/host/path"}}
			})},
		{"unknown stop signal", invalid, []string{"signal"}, create(func(c *cri.ContainerConfig) { c.StopSignal = 9999 })},
		{"RunAsGroup without RunAsUser", invalid, []string{"run_as_user"}, create(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 5}
		})},
		{"user name the image doesn't have", []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"nobody-knows"}, create(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "nobody-knows"
		})},
		{"unknown capability", invalid, []string{"CAP_NOPE"}, create(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"CAP_NOPE"}}
		})},
		{"log path that leaves its directory", invalid, []string{"log"}, create(func(c *cri.ContainerConfig) { c.LogPath = "../../evil.log" })},
		{"seccomp profile that is not there", []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"/no/such.json"}, create(func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}
		})},
		{"container in no pod", missing, []string{"sandbox"}, func(f *fixture) error {
			_, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: strings.Repeat("0", 64),
				Config: containerConfig("bad", images.Busybox), SandboxConfig: pod})
			return err
		}},
		{"program that is not there", missing, []string{"/no/such/program"}, func(f *fixture) error { return f.startBad(id, pod, "/no/such/program") }},
		{"program that can't be executed", []codes.Code{codes.PermissionDenied, codes.InvalidArgument, codes.FailedPrecondition},
			[]string{"/etc/passwd"}, func(f *fixture) error { return f.startBad(id, pod, "/etc/passwd") }},
		{"status of nothing", missing, nil, func(f *fixture) error {
			_, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: "nothing"})
			return err
		}},
		{"exec in nothing", missing, nil, func(f *fixture) error {
			_, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: "nothing", Cmd: []string{"true"}})
			return err
		}},
		{"exec with a terminal and stderr", invalid, []string{"stderr"}, func(f *fixture) error {
			c := f.runContainer(id, pod, containerConfig("tty", images.Busybox, "sleep", "1000"))
			_, err := f.Runtime.Exec(f.ctx, &cri.ExecRequest{ContainerId: c, Cmd: []string{"sh"}, Tty: true, Stdout: true, Stderr: true})
			return err
		}},
		{"pull of an image that is not there", missing, []string{"no/such"}, pull(registry+"no/such:1", nil)},
		{"pull of a bad name", invalid, []string{"UPPER"}, pull(registry+"UPPER/case:1", nil)},
		{"corrupt layer", []codes.Code{codes.DataLoss, codes.FailedPrecondition, codes.InvalidArgument, codes.Internal}, []string{"digest"}, pull(registry+images.Corrupt, nil)},
		{"registry that stalls", []codes.Code{codes.Unavailable, codes.DeadlineExceeded}, []string{"1s"}, pull(registry+images.Stalls, nil)},
		{"registry that nobody serves", []codes.Code{codes.Unavailable}, []string{"RegistryUnavailable"}, pull("127.0.0.1:1/a/b:1", nil)},
		{"private image without credentials", denied, []string{"private/busybox"}, pull(registry+images.Private, nil)},
		{"private image with a wrong password", denied, nil, pull(registry+images.Private, &cri.AuthConfig{Username: images.User, Password: "guess"})},
	} {
		t.Run(r.name, func(t *testing.T) { f.refuses(t, r) })
	}
	f.removePod(id)
	if images, err := f.Image.ListImages(f.ctx, &cri.ListImagesRequest{}); err != nil || len(images.Images) != 2 {
		t.Errorf("images after the refused pulls: %v %v", images, err)
	}
	if stores, _ := filepath.Glob(filepath.Join(f.Dir, "root", "*", "tmp", "*")); len(stores) > 0 {
		t.Errorf("left by refused pulls: %q", stores)
	}
}

func (f *fixture) startBad(pod string, p *cri.PodSandboxConfig, program string) error {
	r, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: p,
		Config: containerConfig("bad-"+filepath.Base(program), images.Busybox, program)})
	if err != nil {
		return err
	}
	f.ids = append(f.ids, r.ContainerId)
	_, err = f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId})
	s, statusErr := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: r.ContainerId})
	if statusErr != nil || s.Status.State != cri.ContainerState_CONTAINER_EXITED || s.Status.ExitCode == 0 {
		f.t.Errorf("after a failed start: %v %v", s, statusErr)
	}
	return err
}

func (f *fixture) refuses(t *testing.T, r refusal) {
	outer := f.t
	f.t = t
	t.Cleanup(func() { f.t = outer })
	before := f.listing()
	began := time.Now()
	err := r.call(f)
	if err == nil {
		t.Fatal("no error")
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %s", took)
	}
	s := status.Convert(err)
	ok := false
	for _, c := range r.codes {
		ok = ok || s.Code() == c
	}
	if !ok {
		t.Errorf("code %s, want one of %v: %s", s.Code(), r.codes, s.Message())
	}
	for _, w := range r.words {
		if !strings.Contains(s.Message(), w) {
			t.Errorf("no %q in: %s", w, s.Message())
		}
	}
	if after := f.listing(); len(after) != len(before) && !strings.HasPrefix(r.name, "program") && !strings.HasPrefix(r.name, "exec") {
		t.Errorf("listed before:\n\t%s\nand after:\n\t%s", strings.Join(before, "\n\t"), strings.Join(after, "\n\t"))
	}
}

// What is gone can be stopped and removed again: kubelet relies on it.
func TestIdempotent(t *testing.T) {
	f := start(t, testnode.Options{})
	id := strings.Repeat("0", 64)
	for name, call := range map[string]func() error{
		"stop container": func() error {
			_, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: id})
			return err
		},
		"remove container": func() error {
			_, err := f.Runtime.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"stop pod": func() error {
			_, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"remove pod": func() error {
			_, err := f.Runtime.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"remove image": func() error {
			_, err := f.Image.RemoveImage(f.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "registry.k8s.io/no/such:1"}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server that can't run says why, and doesn't disturb the one that does.
func TestServerRefusesToStart(t *testing.T) {
	f := start(t, testnode.Options{})
	bad := filepath.Join(f.Dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("listn = \"/x\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(f.Repo, "bin", "cri-server")
	other := filepath.Join(f.Dir, "tmp", "other")
	for name, c := range map[string]struct {
		cmd   *exec.Cmd
		words []string
	}{
		"the same root and socket":        {f.ServerCommand(), []string{"another", "in use"}},
		"the same root":                   {f.ServerCommand("--socket", "/run/other/cri.sock", "--state", "/run/other"), []string{filepath.Join(f.Dir, "root"), "another"}},
		"the same socket":                 {f.ServerCommand("--root", other, "--state", "/run/other2"), []string{f.Socket, "another"}},
		"a config file that is not there": {exec.Command(bin, "serve", "--config", "/no/such/config.toml"), []string{"/no/such/config.toml"}},
		"an unknown option in the file":   {exec.Command(bin, "serve", "--config", bad), []string{bad, "listn"}},
		"an unknown flag":                 {exec.Command(bin, "serve", "--no-such-flag"), []string{"no-such-flag"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := endsSoon(t, c.cmd)
			if err == nil {
				t.Errorf("it started, or ended well:\n%s", out)
			}
			for _, w := range c.words {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in:\n%s", w, out)
				}
			}
		})
	}
	if _, err := f.Runtime.Version(f.ctx, &cri.VersionRequest{}); err != nil {
		t.Errorf("the first server: %v", err)
	}
	f.runPod(f.podConfig("after"))
}

func endsSoon(t *testing.T, c *exec.Cmd) (string, error) {
	t.Helper()
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	c.WaitDelay = time.Second
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(15*time.Second, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	err := c.Wait()
	return out.String(), err
}
