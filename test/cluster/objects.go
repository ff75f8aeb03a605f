package main

import (
	"embed"
	"fmt"
	"os/exec"
	"strings"
)

//go:embed objects/*.yaml
var objects embed.FS

// object is the text of a file in objects/.
func object(name string) string {
	b, err := objects.ReadFile("objects/" + name + ".yaml")
	if err != nil {
		panic(err) // it is embedded
	}
	return string(b)
}

// crictl lists what the runtime has, by ids.
func crictl(args ...string) ([]string, error) {
	endpoint := "unix:///run/cri-server/cri-server.sock"
	out, err := exec.Command("/repo/bin/crictl", append([]string{"--config", "/repo/contrib/crictl.yaml", "--runtime-endpoint", endpoint,
		"--image-endpoint", endpoint, "--timeout", "30s"}, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("crictl %v: %w: %s", args, err, out)
	}
	return strings.Fields(string(out)), nil
}

// nobody looks for running containers of a pod.
func nobody(pod string) error {
	ids, err := crictl("ps", "-q", "--label", "io.kubernetes.pod.name="+pod)
	if err == nil && len(ids) > 0 {
		err = fmt.Errorf("%s still runs: %v", pod, ids)
	}
	return err
}
