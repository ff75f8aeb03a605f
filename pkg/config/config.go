// Package config is the server's configuration: one table of options (options.go) from which come the file format, the
// flags, the checks, the dump and the documentation. An option is a field of Config and one entry of the table.
//
// Values come, later ones winning, from the defaults, from the file, from the *.toml files of the directory FILE.d in
// lexical order, and from flags. An unknown key, a value of the wrong type or out of range is an error with file and line;
// all are reported at once. A Config does not change after Load.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
)

// DefaultFile is read when no other file is named; it need not exist.
const DefaultFile = "/etc/cri-server/config.toml"

// Config holds the typed values; what each means stands in the table. Paths are absolute, sizes in bytes.
type Config struct {
	Socket      string
	SocketMode  os.FileMode
	SocketGroup string
	State       string
	Root        string
	LogLevel    string
	LogFormat   string
	MonitorPath string
	// MonitorUpgrade has a running cri-monitor of another version replaced in place.
	MonitorUpgrade bool

	CgroupDriver        string
	DefaultCgroupParent string

	DefaultRuntime          string
	SeccompDefaultProfile   string
	CDIDirs                 []string
	EnableUnprivilegedPorts bool
	EnableUnprivilegedICMP  bool
	MaxExecOutput           int64
	ShmSize                 int64
	NofileSoft, NofileHard  uint64

	Network  Network
	Stream   Stream
	Image    Image
	Runtimes map[string]*Runtime

	src      Sources
	opts     []*Option
	handlers map[string][]*Option // of Runtimes, by name
}

// Network says how pods are connected.
type Network struct {
	Mode     string // auto, cni, embedded
	ConfDir  string
	BinDirs  []string
	NetnsDir string
	PodCIDR  []string
	Bridge   string
}

// Stream is the server of exec, attach and port-forward.
type Stream struct {
	Address         string
	IdleTimeout     time.Duration
	CreationTimeout time.Duration
	TLSCert, TLSKey string
}

// Image is the image store.
type Image struct {
	CertsDir          string
	RegistriesFiles   []string
	Snapshotter       string
	PullStallTimeout  time.Duration
	PullStallBytes    int64
	MaxParallelLayers int
	MaxLayers         int
	MaxLayerBytes     int64
	MaxUnpackedBytes  int64
	MaxLayerFiles     int64
	MaxManifestBytes  int64
	MaxConfigBytes    int64
	MaxIndexEntries   int
	MaxPathLength     int
	MaxPathDepth      int
	MaxArchiveBytes   int64
	DiscardBlobs      bool
	ImportDir         string
	Pinned            []string
	AuthFiles         []string
}

// Runtime is one runtime handler.
type Runtime struct {
	Engine   string // native, oci
	Path     string
	Root     string
	Args     []string
	Features []string
}

// Sources are where values come from.
type Sources struct {
	// File is the main file; empty means DefaultFile, which alone may be missing.
	File string
	// Flags is a set that BindFlags made and that was parsed; may be nil.
	Flags *pflag.FlagSet
}

// New returns the defaults.
func New() *Config {
	c := &Config{Runtimes: map[string]*Runtime{}, handlers: map[string][]*Option{}}
	c.opts = table(c)
	for _, o := range c.opts {
		o.Default = o.value.literal()
	}
	c.runtimeOptions(nativeHandler)
	return c
}

// Load reads and checks the configuration. Its error, an errdefs.ErrInvalidArgument (or what reading a file gave), lists
// everything that is wrong.
func Load(src Sources) (*Config, error) {
	c := New()
	c.src = src
	file, optional := src.File, false
	if file == "" {
		file, optional = DefaultFile, true
	}
	files, err := c.files(file, optional)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range files {
		errs = append(errs, c.readFile(f)...)
	}
	errs = append(errs, c.readFlags(src.Flags)...)
	// Rules between options would only repeat what is wrong with one of them.
	if len(errs) == 0 {
		errs = c.validate()
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// files are the main file and its drop-ins, in the order in which they are read.
func (c *Config) files(file string, optional bool) ([]string, error) {
	var files []string
	if _, err := os.Stat(file); err == nil {
		files = append(files, file)
	} else if !optional || !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("config: %w", err)
	}
	list, err := os.ReadDir(file + ".d")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("config: %w", err)
	}
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(file+".d", e.Name()))
		}
	}
	return files, nil
}

// Options lists all options in the order of the table, those of the runtime handlers last.
func (c *Config) Options() []*Option {
	all := slices.Clone(c.opts)
	for _, name := range c.handlerNames() {
		all = append(all, c.handlers[name]...)
	}
	return all
}

func (c *Config) handlerNames() []string {
	names := make([]string, 0, len(c.handlers))
	for n := range c.handlers {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// handlerName is what a RuntimeClass may name (a DNS label, KEP-585).
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// option finds an option by its key's parts; the first use of [runtimes.NAME] makes that handler.
func (c *Config) option(key []string) *Option {
	name := strings.Join(key, ".")
	opts := c.opts
	if len(key) == 3 && key[0] == runtimesKey && handlerName.MatchString(key[1]) {
		opts = c.runtimeOptions(key[1])
	}
	for _, o := range opts {
		if o.Key == name {
			return o
		}
	}
	return nil
}

func (c *Config) runtimeOptions(name string) []*Option {
	if opts, ok := c.handlers[name]; ok {
		return opts
	}
	r := &Runtime{}
	opts := runtimeTable(name, r)
	for _, o := range opts {
		o.Default = o.value.literal()
	}
	c.Runtimes[name], c.handlers[name] = r, opts
	return opts
}

// Lookup returns the option of a dotted key, nil if there is none.
func (c *Config) Lookup(key string) *Option {
	for _, o := range c.Options() {
		if o.Key == key {
			return o
		}
	}
	return nil
}

// validate checks what concerns more than one option, or the host.
func (c *Config) validate() []error {
	var errs []error
	bad := func(key, format string, args ...any) {
		o := c.Lookup(key)
		errs = append(errs, o.errorf(format, args...))
	}
	if c.Runtimes[c.DefaultRuntime] == nil {
		bad("default_runtime", "there is no [runtimes.%s] (there are: %s)", c.DefaultRuntime, strings.Join(c.handlerNames(), ", "))
	}
	if (c.Stream.TLSCert == "") != (c.Stream.TLSKey == "") {
		bad("stream.tls_cert", "tls_cert and tls_key go together")
	}
	if c.NofileSoft > c.NofileHard {
		bad("nofile_soft", "%d is above nofile_hard, %d", c.NofileSoft, c.NofileHard)
	}
	if c.State == c.Root || strings.HasPrefix(c.State+"/", c.Root+"/") || strings.HasPrefix(c.Root+"/", c.State+"/") {
		bad("state", "%s and root, %s, must not lie in each other", c.State, c.Root)
	}
	for _, f := range []struct{ key, path string }{
		{"monitor_path", c.MonitorPath},
		{"seccomp_default_profile", c.SeccompDefaultProfile},
		{"stream.tls_cert", c.Stream.TLSCert},
		{"stream.tls_key", c.Stream.TLSKey},
	} {
		if f.path == "" {
			continue
		}
		if st, err := os.Stat(f.path); err != nil {
			bad(f.key, "%v", err)
		} else if !st.Mode().IsRegular() {
			bad(f.key, "%s is no regular file", f.path)
		}
	}
	for _, name := range c.handlerNames() {
		r, prefix := c.Runtimes[name], runtimesKey+"."+name+"."
		switch {
		case r.Engine == "oci" && r.Path == "":
			bad(prefix+"path", "engine oci needs the path of a runtime binary")
		case r.Engine == "native" && r.Path+r.Root != "":
			bad(prefix+"engine", "engine native takes no path and no root; engine = \"oci\" does")
		case r.Engine == "native" && len(r.Args) > 0:
			bad(prefix+"args", "engine native takes no args; engine = \"oci\" does")
		}
	}
	return errs
}

// errorf says what is wrong with the option's value, and where that came from.
func (o *Option) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %s: %w", o.Origin, o.Key, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
