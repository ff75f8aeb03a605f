package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// workloads are what controllers and services make of pods, and what changes while they run.
var workloads = []promise{
	{"a Deployment of three, its Service through kube-proxy, from the node and from a pod", deployment},
	{"a rolling update, scaled, and undone", rolling},
	{"in-place resize: cpu and memory, up and down, no restart", resize},
	{"in-place resize with RestartContainer", resizeRestart},
	{"a Job of four, two at a time, and one that fails", jobs},
	{"a StatefulSet in order, a DaemonSet", ordered},
	{"RuntimeClass: runc; a handler that isn't there", runtimeClasses},
	{"ImagePullBackOff of an image that isn't there; imagePullPolicy Never", noImage},
	{"a container of a pod that is killed from outside is restarted", killed},
	{"the API server's way to /stats/summary, /metrics/cadvisor and /metrics/resource", statistics},
}

func deployment(r *run) error {
	if err := errors.Join(r.apply(object("shop")), r.ks("rollout status deployment/shop --timeout=90s")); err != nil {
		return err
	}
	ip, err := r.k("get", "service", "shop", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	// Each pod answers with its name: with 40 questions one of three is missed once in ten million runs.
	var seen []string
	err = r.until(soon, func(r *run) error {
		seen = nil
		out, err := r.k("exec", "box", "--", "sh", "-c", "for i in $(seq 40); do wget -q -O - http://"+ip+":8000/; done")
		if err != nil {
			return err
		}
		seen = strings.Fields(out)
		slices.Sort(seen)
		if seen = slices.Compact(seen); len(seen) != 3 {
			return fmt.Errorf("pods that answered: %v", seen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.until(soon, func(*run) error { return answers(ip+":8000", "shop-.*") })
}

func rolling(r *run) error {
	return errors.Join(
		r.ks("set env deployment/shop COLOUR=red", "rollout status deployment/shop --timeout=90s", "scale deployment/shop --replicas=5",
			"rollout status deployment/shop --timeout=90s"),
		r.says("red red red red red", "get pods -l app=shop --field-selector=status.phase=Running -o jsonpath={.items[*].spec.containers[0].env[0].value}"),
		r.ks("rollout undo deployment/shop", "rollout status deployment/shop --timeout=90s", "scale deployment/shop --replicas=3",
			"rollout status deployment/shop --timeout=90s"))
}

const limitFiles = "cd /sys/fs/cgroup; if [ -e cpu.max ]; then cat cpu.max memory.max; else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi"

func resize(r *run) error {
	if err := errors.Join(r.apply(object("elastic")), r.ready("elastic", "elastic-restarts")); err != nil {
		return err
	}
	for _, step := range []struct{ cpu, memory, want string }{
		{"200m", "64Mi", "20000( 100000)?\n67108864"}, {"500m", "128Mi", "50000( 100000)?\n134217728"},
		{"100m", "32Mi", "10000( 100000)?\n33554432"}} {
		patch := fmt.Sprintf(`{"spec":{"containers":[{"name":"elastic","resources":{"requests":{"cpu":%q,"memory":%q},"limits":{"cpu":%q,"memory":%q}}}]}}`,
			step.cpu, step.memory, step.cpu, step.memory)
		if _, err := r.k("patch", "pod", "elastic", "--subresource", "resize", "--patch", patch); err != nil {
			return err
		}
		err := r.until(soon, func(r *run) error { return r.inside("elastic", limitFiles, step.want) })
		if err != nil {
			conditions, _ := r.k("get", "pod", "elastic", "-o", "jsonpath={.status.conditions} {.status.containerStatuses}")
			return fmt.Errorf("%w\n%s", err, conditions)
		}
	}
	of := "get pod elastic -o jsonpath={.status.containerStatuses[0]"
	return errors.Join(r.becomes("100m 32Mi", of+".resources.limits.cpu} {.status.containerStatuses[0].resources.limits.memory}"),
		r.says("0", of+".restartCount}"))
}

func resizeRestart(r *run) error {
	patch := `{"spec":{"containers":[{"name":"elastic","resources":{"requests":{"memory":"96Mi"},"limits":{"memory":"96Mi"}}}]}}`
	if _, err := r.k("patch", "pod", "elastic-restarts", "--subresource", "resize", "--patch", patch); err != nil {
		return err
	}
	return errors.Join(r.becomes("1", "get pod elastic-restarts -o jsonpath={.status.containerStatuses[0].restartCount}"),
		r.until(soon, func(r *run) error { return r.inside("elastic-restarts", limitFiles, "20000( 100000)?\n100663296") }))
}

func jobs(r *run) error {
	if err := r.apply(object("jobs")); err != nil {
		return err
	}
	return errors.Join(r.ks("wait --for=condition=Complete job/four --timeout=90s", "wait --for=condition=Failed job/fails --timeout=90s"),
		r.says("4", "get job four -o jsonpath={.status.succeeded}"),
		r.says("PodFailurePolicy", `get job fails -o jsonpath={.status.conditions[?(@.type=="Failed")].reason}`))
}

func ordered(r *run) error {
	if err := r.apply(object("ordered")); err != nil {
		return err
	}
	return errors.Join(r.ks("rollout status statefulset/stateful --timeout=90s", "rollout status daemonset/everywhere --timeout=90s"),
		r.inside("stateful-1", "hostname", "stateful-1"), r.ks("delete statefulset/stateful daemonset/everywhere"))
}

func runtimeClasses(r *run) error {
	if err := errors.Join(r.apply(object("classes")), r.ready("by-runc")); err != nil {
		return err
	}
	return errors.Join(r.inside("by-runc", "echo by runc", "by runc"), r.ks("delete pod by-runc --now"),
		r.becomes(".*no-such-handler.*", "get events --field-selector involvedObject.name=by-nobody,reason=FailedCreatePodSandBox -o jsonpath={.items[*].message}"),
		r.ks("delete pod by-nobody --now"))
}

func noImage(r *run) error {
	if err := r.ks("run absent --image=registry.k8s.io/e2e/absent:1", "run never --image=registry.k8s.io/e2e/bad-stop-signal:1 --image-pull-policy=Never"); err != nil {
		return err
	}
	waiting := " -o jsonpath={.status.containerStatuses[0].state.waiting.reason}"
	return errors.Join(r.becomes("ImagePullBackOff", "get pod absent"+waiting),
		r.becomes(".*registry.k8s.io/e2e/absent:1.*not found.*", "get events --field-selector involvedObject.name=absent,reason=Failed -o jsonpath={.items[*].message}"),
		r.becomes("ErrImageNeverPull", "get pod never"+waiting), r.ks("delete pod absent never --now"))
}

// killed ends a container's first process from the node, as the kernel or an operator might.
func killed(r *run) error {
	ids, err := crictl("ps", "-q", "--label", "io.kubernetes.pod.name=talker", "--name", "two")
	if err != nil || len(ids) != 1 {
		return fmt.Errorf("containers: %v: %w", ids, err)
	}
	if _, err := crictl("stop", "--timeout", "0", ids[0]); err != nil {
		return err
	}
	of := `get pod talker -o jsonpath={.status.containerStatuses[?(@.name=="two")]`
	return errors.Join(r.becomes("1", of+".restartCount}"), r.becomes("137", of+".lastState.terminated.exitCode}"), r.ready("talker"))
}

func statistics(r *run) error {
	at := "/api/v1/nodes/" + nodeName + "/proxy"
	return r.until(soon, func(r *run) error {
		out, err := r.k("get", "--raw", at+"/stats/summary")
		if err != nil {
			return err
		}
		var s struct {
			Pods []struct {
				PodRef     struct{ Name string }
				Memory     struct{ WorkingSetBytes uint64 }
				Network    struct{ RxBytes *uint64 }
				Containers []struct {
					Name   string
					CPU    struct{ UsageCoreNanoSeconds uint64 }
					Memory struct{ WorkingSetBytes uint64 }
					Rootfs struct{ UsedBytes *uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		seen := false
		for _, p := range s.Pods {
			if p.PodRef.Name != "web" {
				continue
			}
			for _, c := range p.Containers {
				seen = seen || c.Name == "web" && c.CPU.UsageCoreNanoSeconds > 0 && c.Memory.WorkingSetBytes > 0 && c.Rootfs.UsedBytes != nil &&
					p.Memory.WorkingSetBytes > 0 && (!r.fromCRI || p.Network.RxBytes != nil)
			}
		}
		if !seen {
			return errors.New("/stats/summary has not all of the pod web")
		}
		if r.fromCRI {
			if err := r.says(`.*container_cpu_usage_seconds_total\{[^}]*container="web"[^}]*pod="web".*`, "get --raw "+at+"/metrics/cadvisor"); err != nil {
				return err
			}
		}
		return r.says(`.*container_memory_working_set_bytes\{container="web",[^}]*pod="web".*`, "get --raw "+at+"/metrics/resource")
	})
}
