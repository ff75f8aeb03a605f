package network

import (
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// ifName is the pod's default interface.
const ifName = "eth0"

// runtimeConf is what CNI is told of a pod: CNI_ARGS and the capabilities' values, of which libcni gives each plugin
// those that its configuration asks for.
func (n *CNI) runtimeConf(p Pod) (*libcni.RuntimeConf, error) {
	rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName, CapabilityArgs: map[string]any{}}
	rt.Args = cniArgs(p)
	for _, kv := range rt.Args {
		if strings.ContainsAny(kv[1], ";=\n\x00") {
			return nil, fmt.Errorf("%s %q can't be handed to CNI: %w", kv[0], kv[1], errdefs.ErrInvalidArgument)
		}
	}
	caps := rt.CapabilityArgs
	var ports []object
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		e, err := portMapping(m)
		if err != nil {
			return nil, err
		}
		ports = append(ports, e)
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	bw, err := bandwidth(p.Annotations)
	if err != nil {
		return nil, err
	}
	if bw != nil {
		caps["bandwidth"] = bw
	}
	if d := p.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		caps["dns"] = object{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	if p.CgroupParent != "" {
		caps["cgroupPath"] = p.CgroupParent
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.told && n.cfg.Mode != ModeEmbedded {
		var ranges [][]object
		for _, c := range n.podCIDRs {
			ranges = append(ranges, []object{{"subnet": c.String()}})
		}
		caps["ipRanges"] = ranges
	}
	return rt, nil
}

// cniArgs are a pod's CNI_ARGS.
func cniArgs(p Pod) [][2]string {
	return [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", p.UID}}
}

func portMapping(m PortMapping) (object, error) {
	proto := strings.ToLower(m.Protocol)
	switch proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("port mapping: protocol %q: %w", m.Protocol, errdefs.ErrInvalidArgument)
	}
	for _, port := range []int32{m.HostPort, m.ContainerPort} {
		if port < 1 || port > 65535 {
			return nil, fmt.Errorf("port mapping: port %d: %w", port, errdefs.ErrInvalidArgument)
		}
	}
	e := object{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": proto}
	if m.HostIP != "" {
		if _, err := netip.ParseAddr(m.HostIP); err != nil {
			return nil, fmt.Errorf("port mapping: host address %q: %w", m.HostIP, errdefs.ErrInvalidArgument)
		}
		e["hostIP"] = m.HostIP
	}
	return e, nil
}

// bandwidth reads the annotations that Kubernetes documents for traffic shaping, in bits per second.
func bandwidth(annotations map[string]string) (object, error) {
	bw := object{}
	for _, dir := range []string{"ingress", "egress"} {
		text, ok := annotations["kubernetes.io/"+dir+"-bandwidth"]
		if !ok {
			continue
		}
		rate, err := quantity(text)
		// The limits are Kubernetes' own: 1k to 1P.
		if err != nil || rate < 1000 || rate > 1e15 {
			return nil, fmt.Errorf("annotation kubernetes.io/%s-bandwidth %q is not a rate from 1k to 1P: %w", dir, text, errdefs.ErrInvalidArgument)
		}
		bw[dir+"Rate"], bw[dir+"Burst"] = rate, uint64(math.MaxInt32)
	}
	if len(bw) == 0 {
		return nil, nil
	}
	return bw, nil
}

var suffixes = []struct {
	name  string
	scale *big.Rat
}{
	{"Ki", pow(2, 10)}, {"Mi", pow(2, 20)}, {"Gi", pow(2, 30)}, {"Ti", pow(2, 40)}, {"Pi", pow(2, 50)}, {"Ei", pow(2, 60)},
	{"m", new(big.Rat).Inv(pow(10, 3))}, {"k", pow(10, 3)}, {"M", pow(10, 6)}, {"G", pow(10, 9)}, {"T", pow(10, 12)},
	{"P", pow(10, 15)}, {"E", pow(10, 18)},
}

func pow(base, exp int64) *big.Rat {
	return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(exp), nil))
}

// quantity reads a Kubernetes quantity (10M, 1.5Gi, 1e6), rounded up.
func quantity(s string) (uint64, error) {
	bad := fmt.Errorf("quantity %q: %w", s, errdefs.ErrInvalidArgument)
	if len(s) == 0 || len(s) > 32 || strings.ContainsAny(s, "/_xXpPoObB") && !strings.HasSuffix(s, "P") && !strings.HasSuffix(s, "Pi") {
		return 0, bad
	}
	number, scale := s, pow(1, 1)
	for _, x := range suffixes {
		if n, ok := strings.CutSuffix(s, x.name); ok {
			number, scale = n, x.scale
			break
		}
	}
	if i := strings.IndexAny(number, "eE"); i >= 0 && len(number)-i > 4 {
		return 0, bad // an exponent that would take long to raise to
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok || strings.ContainsAny(number, "/_xXpPoObB") || r.Sign() < 0 {
		return 0, bad
	}
	r.Mul(r, scale)
	q, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	if !q.IsUint64() {
		return 0, bad
	}
	return q.Uint64(), nil
}
