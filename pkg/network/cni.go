package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/google/renameio/v2"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
)

// Modes of Config.Mode.
const (
	// ModeAuto takes the configuration from ConfDir and runs the plugins we have in process.
	ModeAuto = "auto"
	// ModeCNI takes the configuration from ConfDir and runs programs only.
	ModeCNI = "cni"
	// ModeEmbedded needs neither configuration nor programs: one bridge for the node's pods.
	ModeEmbedded = "embedded"
)

// Config says where things are. The zero value of a field is its default.
type Config struct {
	ConfDir  string   // of CNI configurations; /etc/cni/net.d
	BinDirs  []string // of CNI plugins; /opt/cni/bin
	CacheDir string   // of CNI results and the node's pod ranges; /var/lib/cni
	NetnsDir string   // of pinned namespaces; /run/netns
	Mode     string   // ModeAuto, ModeCNI, ModeEmbedded; ModeAuto
	// External are plugins that run as programs in ModeAuto although we have them in process.
	External []string
	// PodCIDRs, Bridge and MTU are of the network of ModeEmbedded: 10.88.0.0/16, cri0, the kernel's default. At most
	// one range of each family.
	PodCIDRs []string
	Bridge   string
	MTU      int
	StateDir string // of host-local's leases; /var/lib/cni/networks
	// PluginTimeout bounds one run of a plugin; 60 s.
	PluginTimeout time.Duration
	Logger        *slog.Logger
}

// CNI is the Network of the node.
type CNI struct {
	cfg     Config
	log     *slog.Logger
	plugins *embedded.Plugins
	exec    *executor
	lib     *libcni.CNIConfig

	conf   confDir // ModeAuto, ModeCNI
	status status
	watch  *watcher

	// spares are files of results that are gone. They are not among the results, where libcni reads all.
	spares *smallfile.Spares

	verbs sync.RWMutex // ADD and DEL share it, GC has it alone (CNI spec, "Lifecycle & Ordering")

	mu       sync.Mutex
	podCIDRs []netip.Prefix         // as told by SetPodCIDR, else Config's in ModeEmbedded
	told     bool                   // SetPodCIDR was called
	builtin  *confList              // of ModeEmbedded and podCIDRs, once it is needed
	active   map[string]*attachment // pods attached, or being attached, by this process; nil: not in process, or not yet
}

var _ Network = (*CNI)(nil)

// New returns the node's network. It reads the configuration once and goes on watching it; a missing one is no error
// here but in Status. The caller closes it.
func New(cfg Config) (*CNI, error) {
	setDefault(&cfg.ConfDir, "/etc/cni/net.d")
	setDefault(&cfg.CacheDir, "/var/lib/cni")
	setDefault(&cfg.NetnsDir, "/run/netns")
	setDefault(&cfg.Mode, ModeAuto)
	setDefault(&cfg.Bridge, "cri0")
	setDefault(&cfg.StateDir, hostlocal.DefaultDataDir)
	if len(cfg.BinDirs) == 0 {
		cfg.BinDirs = []string{"/opt/cni/bin"}
	}
	if len(cfg.PodCIDRs) == 0 {
		cfg.PodCIDRs = []string{"10.88.0.0/16"}
	}
	if cfg.PluginTimeout <= 0 {
		cfg.PluginTimeout = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch cfg.Mode {
	case ModeAuto, ModeCNI, ModeEmbedded:
	default:
		return nil, fmt.Errorf("network: mode %q is none of %s, %s, %s: %w", cfg.Mode, ModeAuto, ModeCNI, ModeEmbedded, errdefs.ErrInvalidArgument)
	}
	cidrs, err := parseCIDRs(cfg.PodCIDRs)
	if err != nil {
		return nil, fmt.Errorf("network: pod range: %w", err)
	}
	n := &CNI{cfg: cfg, log: cfg.Logger, active: map[string]*attachment{}}
	if cfg.Mode == ModeEmbedded {
		n.podCIDRs = cidrs
	}
	if err := n.recallPodCIDR(); err != nil {
		return nil, err
	}
	n.spares = smallfile.NewSpares(cfg.CacheDir, sparePrefix, smallfile.Enough)
	if err := n.spares.Clean(); err != nil { // of a process that was killed
		return nil, fmt.Errorf("network: %w", err)
	}
	x := &executor{timeout: cfg.PluginTimeout, binDirs: cfg.BinDirs, log: cfg.Logger}
	if cfg.Mode != ModeCNI {
		n.plugins = embedded.New(cfg.StateDir, cfg.Logger)
		x.embed(n.plugins, cfg.Mode, cfg.External)
	}
	n.exec = x
	n.lib = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, x)
	n.status.init(n)
	if cfg.Mode != ModeEmbedded {
		n.conf.dir = cfg.ConfDir
		n.conf.log = cfg.Logger
		n.conf.rescan()
		n.watch = watch(cfg.ConfDir, n.conf.rescan, cfg.Logger)
	}
	return n, nil
}

// Files that wait to be results have this prefix.
const sparePrefix = ".cri-server-"

func setDefault(s *string, v string) {
	if *s == "" {
		*s = v
	}
}

// Close stops watching and waits for what runs in the background. Attachments stay.
func (n *CNI) Close() error {
	if n.watch != nil {
		n.watch.close()
	}
	n.status.close()
	err := n.spares.Clean()
	if n.plugins != nil {
		err = errors.Join(err, n.plugins.Close())
	}
	return err
}

// list is the configuration in force.
func (n *CNI) list() (*confList, error) {
	if n.cfg.Mode == ModeEmbedded {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.builtin == nil {
			l, err := builtin(n.cfg, n.podCIDRs)
			if err != nil {
				return nil, err
			}
			n.builtin = l
		}
		return n.builtin, nil
	}
	return n.conf.current()
}

// SetPodCIDR implements Network. The ranges outlive this process: kubelet tells them when they change, not when we
// start. In ModeEmbedded new pods get addresses from them; else plugins with the capability ipRanges are told.
func (n *CNI) SetPodCIDR(_ context.Context, cidr string) error {
	if strings.Trim(cidr, ", ") == "" {
		return nil
	}
	cidrs, err := parseCIDRs(strings.Split(cidr, ","))
	if err != nil {
		return fmt.Errorf("pod range: %w", err)
	}
	var text []string
	for _, p := range cidrs {
		text = append(text, p.String())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.MkdirAll(n.cfg.CacheDir, 0o700); err != nil {
		return fmt.Errorf("pod range: %w", err)
	}
	if err := renameio.WriteFile(n.cidrFile(), []byte(strings.Join(text, ",")+"\n"), 0o600); err != nil {
		return fmt.Errorf("pod range: %w", err)
	}
	n.podCIDRs, n.told, n.builtin = cidrs, true, nil
	return nil
}

func (n *CNI) cidrFile() string { return filepath.Join(n.cfg.CacheDir, "pod-cidr") }

func (n *CNI) recallPodCIDR() error {
	b, err := os.ReadFile(n.cidrFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network: pod range: %w", err)
	}
	cidrs, err := parseCIDRs(strings.Split(strings.TrimSpace(string(b)), ","))
	if err != nil {
		n.log.Warn("the recorded pod range can't be read and is ignored", "file", n.cidrFile(), "err", err)
		return nil
	}
	n.podCIDRs, n.told = cidrs, true
	return nil
}

// parseCIDRs reads at most one range of each family.
func parseCIDRs(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a prefix such as 10.88.0.0/16: %w", s, errdefs.ErrInvalidArgument)
		}
		if p.Addr().Is4In6() || p.Bits() > p.Addr().BitLen()-2 || p.Addr().IsMulticast() || p.Addr().IsLoopback() {
			return nil, fmt.Errorf("%s is no range for pods: %w", p, errdefs.ErrInvalidArgument)
		}
		p = p.Masked()
		for _, o := range out {
			if o.Addr().Is4() == p.Addr().Is4() {
				return nil, fmt.Errorf("%s and %s are of one family: %w", o, p, errdefs.ErrInvalidArgument)
			}
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("none is given: %w", errdefs.ErrInvalidArgument)
	}
	return out, nil
}
