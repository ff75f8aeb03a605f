package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func setProcess(in *Input, s *specs.Spec) error {
	args, err := args(in)
	if err != nil {
		return err
	}
	env, err := environ(in)
	if err != nil {
		return err
	}
	cwd := in.Container.GetWorkingDir()
	if cwd == "" {
		cwd = in.Image.WorkingDir
	}
	if cwd = path.Join("/", cwd); strings.ContainsRune(cwd, 0) {
		return invalid("working_dir %q holds a NUL byte", cwd)
	}
	p := s.Process
	p.Args, p.Env, p.Cwd = args, env, cwd
	p.Terminal = in.Container.GetTty()
	p.NoNewPrivileges = in.security().GetNoNewPrivs()
	p.Rlimits = rlimits(in.Host)
	if r := in.Container.GetLinux().GetResources(); r != nil {
		p.OOMScoreAdj, err = oomScoreAdj(in.Host, r.GetOomScoreAdj())
	}
	return err
}

// args: command replaces the image's entrypoint and cmd, args alone replaces cmd (CRI ContainerConfig.command).
func args(in *Input) ([]string, error) {
	command, args := in.Container.GetCommand(), in.Container.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(command) == 1 && command[0] == "" { // how a Dockerfile unsets its base's entrypoint
			command = nil
		}
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	all := append(append([]string{}, command...), args...)
	if len(all) == 0 {
		return nil, invalid("no command: neither the container's command and args nor the image's entrypoint and cmd are set")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("argument %q holds a NUL byte", a)
		}
	}
	return all, nil
}

// environ: defaults, then the image's variables, then the container's; a later one takes the earlier one's place.
func environ(in *Input) ([]string, error) {
	host := in.Pod.GetHostname()
	if host == "" {
		host = in.Host.Name
	}
	env := envList{}
	env.set(defaultPath)
	if in.Container.GetTty() {
		env.set("TERM=xterm")
	}
	env.set("HOSTNAME=" + host)
	for _, e := range in.Image.Env {
		// An entry without '=' or name is in no valid image; it can't be given to a process.
		if i := strings.IndexByte(e, '='); i > 0 && !strings.ContainsRune(e, 0) {
			env.set(e)
		}
	}
	for _, e := range in.Container.GetEnvs() {
		k, v := e.GetKey(), string(e.GetValue())
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return nil, invalid("environment variable %q: the name must not be empty or hold '=', neither part a NUL byte", k)
		}
		env.set(k + "=" + v)
	}
	return env.list, nil
}

type envList struct {
	list []string
	at   map[string]int
}

func (e *envList) set(kv string) {
	k, _, _ := strings.Cut(kv, "=")
	if e.at == nil {
		e.at = map[string]int{}
	}
	if i, ok := e.at[k]; ok {
		e.list[i] = kv
		return
	}
	e.at[k] = len(e.list)
	e.list = append(e.list, kv)
}

func hasEnv(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}

func rlimits(h *Host) []specs.POSIXRlimit {
	soft, hard := h.Defaults.noFile()
	if h.NoFileMax > 0 {
		hard = min(hard, h.NoFileMax)
	}
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(soft, hard), Hard: hard}}
}

// oomScoreAdj: lowering it below one's own needs CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)), so it is clamped to
// what this daemon can set, as rootless runtimes do.
func oomScoreAdj(h *Host, adj int64) (*int, error) {
	if adj < -1000 || adj > 1000 {
		return nil, invalid("oom_score_adj %d: must be between -1000 and 1000", adj)
	}
	n := max(int(adj), h.OOMScoreAdjMin)
	return &n, nil
}

// containerAnnotations are the names containerd gave them, which VM runtimes and hooks read.
func containerAnnotations(in *Input) map[string]string {
	a := podAnnotations(in.SandboxID, in.Pod)
	a["io.kubernetes.cri.container-type"] = "container"
	a["io.kubernetes.cri.container-name"] = in.Container.GetMetadata().GetName()
	a["io.kubernetes.cri.image-name"] = in.ImageName
	return a
}

func podAnnotations(id string, pod *runtimeapi.PodSandboxConfig) map[string]string {
	return map[string]string{
		"io.kubernetes.cri.sandbox-id":        id,
		"io.kubernetes.cri.sandbox-name":      pod.GetMetadata().GetName(),
		"io.kubernetes.cri.sandbox-namespace": pod.GetMetadata().GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       pod.GetMetadata().GetUid(),
	}
}
