package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// storage are volumes that need an API server, and what happens to pods that take too much.
var storage = []promise{
	{"config map, secret, service account token, downward API, image and recursive read-only volumes", volumes},
	{"a changed config map arrives", changedMap},
	{"evicted: more in the root file system than the limit of ephemeral storage", func(r *run) error { return r.evicted("fills-root", "ephemeral") }},
	{"evicted: more in the log than the limit of ephemeral storage", func(r *run) error { return r.evicted("fills-log", "ephemeral") }},
	{"evicted: more in an emptyDir than its sizeLimit", func(r *run) error { return r.evicted("fills-disk", "emptyDir") }},
}

func volumes(r *run) error {
	if err := errors.Join(r.apply(object("volumes")), r.ready("volumes")); err != nil {
		return err
	}
	of := "volumes"
	return errors.Join(
		r.inside(of, "cat /map/colour; echo; cat /map/below/deep; echo; echo $COLOUR $PASSWORD", "green\ndeep down\ngreen hunter2"),
		r.inside(of, "cat /secret/password; stat -Lc %a /secret/password; grep -c ' /secret tmpfs' /proc/mounts", "hunter2400\n1"),
		r.inside(of, "head -c 3 /var/run/secrets/kubernetes.io/serviceaccount/token; wc -c </var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "eyJ[1-9]\\d+"),
		r.inside(of, "cat /about/labels; echo; echo $MY_NAME $MY_NODE $MY_IP", "app=\"volumes\"\nvolumes "+nodeName+` \d+\.\d+\.\d+\.\d+`),
		r.inside(of, "cat /image/index.html; touch /image/x 2>&1 || true", "hello from a pod\n.*[Rr]ead-only.*"),
		r.inside(of, "touch /readonly/x 2>&1 || true; touch /readonly/share/x 2>&1 || true", "(.*[Rr]ead-only.*){2}"),
		r.inside(of, "wget -q -O - http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/", "(?i).*welcome to nginx.*"))
}

func changedMap(r *run) error {
	patch := `{"data":{"colour":"blue"}}`
	if _, err := r.k("patch", "configmap", "settings", "--patch", patch); err != nil {
		return err
	}
	return r.until(3*soon, func(r *run) error { return r.inside("volumes", "cat /map/colour", "blue") })
}

// evicted makes a pod that takes too much; kubelet looks at that every ten seconds.
func (r *run) evicted(name, why string) error {
	if err := r.apply(object(name)); err != nil {
		return err
	}
	of := "get pod " + name + " -o jsonpath="
	return errors.Join(
		r.until(3*soon, func(r *run) error {
			return r.says("Failed Evicted .*(?i:"+why+").*", of+"{.status.phase} {.status.reason} {.status.message}")
		}),
		r.until(soon, func(*run) error { return nobody(name) }))
}

var took = regexp.MustCompile(`Container hog was using (\d+)Ki, request is 1Mi`)

// pressure starts kubelet anew with a threshold that the machine has long passed. It is a soft one: kubelet takes a hard one
// from what the node can give to pods. Pods without requests are refused at such a start, so this comes last.
func pressure(r *run) error {
	if err := errors.Join(r.apply(object("pressure")), r.ready("hog")); err != nil {
		return err
	}
	restart := func(threshold string) error {
		r.Evict = threshold
		return errors.Join(r.write("config", etc), systemctl("restart", "kubelet"))
	}
	err := restart("99.9%")
	if err == nil {
		err = r.becomes("Failed Evicted", "get pod hog -o jsonpath={.status.phase} {.status.reason}")
	}
	message, err2 := r.k("get", "pod", "hog", "-o", "jsonpath={.status.message}")
	if m := took.FindStringSubmatch(message); m == nil {
		err2 = errors.Join(err2, fmt.Errorf("the message is %q", message))
	} else if ki, _ := strconv.Atoi(m[1]); ki < 80<<10 || ki > 120<<10 {
		err2 = errors.Join(err2, fmt.Errorf("it took 100 MiB, and kubelet says %d KiB", ki))
	}
	return errors.Join(err, err2, restart(""), r.becomes("False", "get node "+nodeName+` -o jsonpath={.status.conditions[?(@.type=="MemoryPressure")].status}`),
		r.until(soon, nodeReady))
}
