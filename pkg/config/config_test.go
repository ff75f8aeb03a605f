package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// write makes files below a new directory and returns the path of config.toml in it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.toml")
}

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	BindFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestPrecedence(t *testing.T) {
	file := write(t, map[string]string{
		"config.toml": "log_level = 'debug'\nshm_size = 1048576\nnofile_soft = 2048\n[network]\nmode = 'cni'\nbridge = 'br0'\n",
		"config.toml.d/10-a.toml": "nofile_soft = 100\nimage = {discard_blobs = true, pull_stall_timeout = '5m'}\n" +
			"[runtimes.runc]\nengine = 'oci'\npath = '/usr/sbin/runc'\n",
		"config.toml.d/20-b.toml":    "nofile_soft = 200\nnetwork.bridge = 'br1'\n[runtimes.runc]\nargs = ['--debug']\n[runtimes.other]\n",
		"config.toml.d/30.toml.save": "unknown = 1\n",
		"config.toml.d/.hidden.toml": "unknown = 1\n",
	})
	c, err := Load(Sources{File: file, Flags: flags(t, "--log-level=warn", "--network", "embedded",
		"--socket-mode=0600", "--network-bin-dirs=/a,/b", "--enable-unprivileged-ports=false", "--image-discard-blobs")})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{
		"level": c.LogLevel, "shm": c.ShmSize, "nofile": c.NofileSoft, "mode": c.Network.Mode, "bridge": c.Network.Bridge,
		"sock": c.SocketMode, "bins": c.Network.BinDirs, "ports": c.EnableUnprivilegedPorts, "icmp": c.EnableUnprivilegedICMP,
		"stall": c.Image.PullStallTimeout, "discard": c.Image.DiscardBlobs, "socket": c.Socket, "runtimes": c.Runtimes,
	}
	if diff := cmp.Diff(map[string]any{
		"level": "warn", "shm": int64(1 << 20), "nofile": uint64(200), "mode": "embedded", "bridge": "br1",
		"sock": os.FileMode(0o600), "bins": []string{"/a", "/b"}, "ports": false, "icmp": true,
		"stall": 5 * time.Minute, "discard": true, "socket": "/run/cri-server/cri-server.sock",
		"runtimes": map[string]*Runtime{
			"native": {Engine: "native"},
			"other":  {Engine: "native"},
			"runc":   {Engine: "oci", Path: "/usr/sbin/runc", Args: []string{"--debug"}},
		},
	}, got); diff != "" {
		t.Error(diff)
	}
	for key, want := range map[string]string{
		"log_level":           "flag --log-level",
		"network.mode":        "flag --network",
		"shm_size":            file + ":2",
		"nofile_soft":         file + ".d/20-b.toml:1",
		"network.bridge":      file + ".d/20-b.toml:2",
		"runtimes.runc.path":  file + ".d/10-a.toml:5",
		"image.discard_blobs": "flag --image-discard-blobs",
		"socket":              "default",
	} {
		if got := c.Lookup(key).Origin.String(); got != want {
			t.Errorf("%s comes from %s, not %s", key, got, want)
		}
	}
}

func TestErrorsSayWhereAndWhat(t *testing.T) {
	long := "'/" + strings.Repeat("x", 107) + "'"
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":          {"\nsoket = '/x'\n", `config.toml:2: soket: unknown key, did you mean "socket"?`},
		"unknown in section":   {"[network]\nmoed = 'cni'", `config.toml:2: network.moed: unknown key, did you mean "network.mode"?`},
		"in the wrong section": {"conf_dir = '/x'", `config.toml:1: conf_dir: unknown key, did you mean "network.conf_dir"?`},
		"nothing near":         {"zzzzzzzz = 1", "config.toml:1: zzzzzzzz: unknown key: "},
		"unknown section":      {"[foo]\nbar = 1", "config.toml:1: foo: unknown key: "},
		"inline table":         {"image = {\n discard_blob = true}", `config.toml:2: image.discard_blob: unknown key, did you mean "image.discard_blobs"?`},
		"runtime key":          {"[runtimes.runc]\nbinary = 'x'\n[runtimes.crun]\nenginee = 'oci'", `config.toml:4: runtimes.crun.enginee: unknown key, did you mean "runtimes.crun.engine"?`},
		"handler name":         {"[runtimes.Bad_Name]\nengine = 'oci'", "config.toml:1: runtimes.Bad_Name: unknown key"},
		"array of tables":      {"[[runtimes.runc]]\nengine = 'oci'", "config.toml:1: runtimes.runc: want a table, not an array"},
		"section as value":     {"network = 'cni'", "config.toml:1: network: want a table, not a string"},
		"value as section":     {"[socket]\nx = 1", "config.toml:1: socket: want a string, not a table"},
		"type string":          {"socket = 1", "config.toml:1: socket: want a string, not an integer"},
		"type bool":            {"enable_unprivileged_ports = 'yes'", "want true or false, not a string"},
		"type int":             {"nofile_soft = 1.5", "want an integer, not a float"},
		"type list":            {"cdi_dirs = '/x'", "want an array of strings, not a string"},
		"type element":         {"cdi_dirs = ['/x', 1]", "element 2: want a string, not an integer"},
		"type size":            {"shm_size = true", `want a number of bytes or a string such as "64MiB", not a boolean`},
		"type duration":        {"stream.idle_timeout = 5", `want a duration such as "90s", not an integer`},
		"choice":               {"[network]\nmode = 'embeded'", `"embeded" is none of auto, cni, embedded, did you mean "embedded"?`},
		"path":                 {"state = 'run'", `state: "run" is no absolute, clean path`},
		"path dots":            {"state = '/a/../b'", "is no absolute, clean path"},
		"socket length":        {"socket = " + long, "more than 107 bytes"},
		"size range":           {"shm_size = '1KiB'", "1KiB is not within 64KiB and "},
		"size overflow":        {"shm_size = '99999999999TiB'", "want a number of bytes"},
		"size negative":        {"shm_size = -1", "want a number of bytes"},
		"int range":            {"nofile_hard = -1", "-1 is not within 64 and 1073741824"},
		"duration":             {"stream.idle_timeout = 'soon'", "want a duration such as 90s or 1h30m"},
		"mode":                 {"socket_mode = '0999'", "want permissions such as \"0660\""},
		"mode range":           {"socket_mode = 0o7777", "want permissions such as \"0660\""},
		"cidr":                 {"network.pod_cidr = ['10.0.0.1/8']", `"10.0.0.1/8" is no address range`},
		"address":              {"stream.address = 'localhost'", `"localhost" is no address and port`},
		"interface":            {"network.bridge = 'a/b'", "is no interface name"},
		"feature":              {"[runtimes.a]\nfeatures = ['user_namespace']", `did you mean "user_namespaces"?`},
		"syntax":               {"socket = '/x'\nlog_level = \n", "config.toml:2:"},
		"twice":                {"socket = '/x'\nlisten = '/y'\n", "config.toml:2:"},
		"no such runtime":      {"default_runtime = 'runc'", "config.toml:1: default_runtime: there is no [runtimes.runc] (there are: native)"},
		"soft above hard":      {"nofile_soft = 600000", "600000 is above nofile_hard, 524288"},
		"state in root":        {"state = '/var/lib/cri-server/state'", "must not lie in each other"},
		"oci without path":     {"[runtimes.runc]\nengine = 'oci'", "runtimes.runc.path: engine oci needs the path"},
		"native with path":     {"[runtimes.x]\npath = '/x'", "engine native takes no path"},
		"native with args":     {"[runtimes.x]\nargs = ['-x']", "engine native takes no args"},
		"missing profile":      {"seccomp_default_profile = '/nonexistent/p.json'", "config.toml:1: seccomp_default_profile: stat /nonexistent/p.json: no such file"},
		"monitor no file":      {"monitor_path = '/etc'", "/etc is no regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(Sources{File: write(t, map[string]string{"config.toml": tc.text})})
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	file := write(t, map[string]string{
		"config.toml":          "a_b_c_d_e = 1\nlog_level = 'x'\n",
		"config.toml.d/1.toml": "shm_size = 1\n",
	})
	_, err := Load(Sources{File: file})
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("%v", err)
	}
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, bytes.Repeat([]byte("#"), maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): "no such file",
		dir:                             "is a directory",
		big:                             "more than",
		big + "/x":                      "not a directory",
	} {
		if _, err := Load(Sources{File: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestBadFlags(t *testing.T) {
	for _, arg := range []string{"--log-level=loud", "--shm-size=x", "--enable-unprivileged-ports=maybe", "--nofile-soft=x",
		"--socket-mode=x", "--socket=x", "--network-pod-cidr=1", "--stream-idle-timeout=1ms", "--no-such-flag"} {
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		BindFlags(fs)
		if err := fs.Parse([]string{arg}); err == nil {
			t.Errorf("%s was accepted", arg)
		}
	}
}

// What dump and default write must be read back as the same values.
func TestWrittenFilesAreRead(t *testing.T) {
	src := Sources{File: write(t, map[string]string{
		"config.toml": "socket_group = \"a\\\"b\\\\\\u0007\"\ncdi_dirs = []\nshm_size = 70000\nstream.idle_timeout = '1h30m'\n" +
			"[runtimes.kata]\nengine='oci'\npath='/usr/bin/kata'\nargs=['a','b']\n",
	})}
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, origin := range []bool{false, true} {
		var b bytes.Buffer
		if err := c.Dump(&b, origin); err != nil {
			t.Fatal(err)
		}
		again, err := Load(Sources{File: write(t, map[string]string{"config.toml": b.String()})})
		if err != nil {
			t.Fatalf("%v\n%s", err, b.String())
		}
		if diff := cmp.Diff(literals(c), literals(again)); diff != "" {
			t.Error(diff)
		}
		if got := strings.Contains(b.String(), "shm_size = \"70000\" # "+src.File+":3"); got != origin {
			t.Errorf("origin %v:\n%s", origin, b.String())
		}
	}
	var b bytes.Buffer
	if err := WriteDefault(&b); err != nil {
		t.Fatal(err)
	}
	commented, err := Load(Sources{File: write(t, map[string]string{"config.toml": b.String()})})
	if err != nil {
		t.Fatal(err)
	}
	// With the options' own comment signs taken away it still says the same.
	text := strings.ReplaceAll(strings.ReplaceAll(b.String(), "\n#", "\n"), "[runtimes.NAME]", "[runtimes.native]")
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(l string) bool {
		return strings.HasPrefix(l, " ") || strings.HasPrefix(l, "#")
	})
	plain, err := Load(Sources{File: write(t, map[string]string{"config.toml": strings.Join(lines, "\n")})})
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []*Config{commented, plain} {
		if diff := cmp.Diff(literals(New()), literals(got)); diff != "" {
			t.Error(diff)
		}
	}
}

func literals(c *Config) map[string]string {
	m := map[string]string{}
	for _, o := range c.Options() {
		m[o.Key] = o.Literal()
	}
	return m
}

func TestReload(t *testing.T) {
	file := write(t, map[string]string{"config.toml": "shm_size = '1MiB'\n[runtimes.a]\n"})
	c, err := Load(Sources{File: file, Flags: flags(t, "--log-format=json")})
	if err != nil {
		t.Fatal(err)
	}
	if _, changes, err := c.Reload(); err != nil || len(changes) != 0 {
		t.Fatalf("nothing changed: %v, %v", changes, err)
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("log_level = 'debug'\nlog_format = 'text'\nshm_size = '2MiB'\n[runtimes.b]\n")
	next, changes, err := c.Reload()
	if err != nil {
		t.Fatal(err)
	}
	if next.LogLevel != "debug" || next.ShmSize != 1<<20 || next.LogFormat != "json" || next.Runtimes["a"] == nil || next.Runtimes["b"] != nil {
		t.Errorf("%+v", next)
	}
	if got := next.Lookup("log_level").Origin.String(); got != file+":1" {
		t.Error(got)
	}
	var got []Change
	for _, ch := range changes {
		if !strings.HasPrefix(ch.Key, "runtimes.") || strings.HasSuffix(ch.Key, ".engine") {
			got = append(got, ch)
		}
	}
	if diff := cmp.Diff([]Change{
		{Key: "log_level", Old: `"info"`, New: `"debug"`, Live: true},
		{Key: "shm_size", Old: `"1MiB"`, New: `"2MiB"`},
		{Key: "runtimes.b.engine", New: `"native"`},
		{Key: "runtimes.a.engine", Old: `"native"`},
	}, got); diff != "" {
		t.Error(diff)
	}
	put("log_level = 3\n")
	if _, _, err := next.Reload(); !errdefs.IsInvalidArgument(err) || next.LogLevel != "debug" {
		t.Errorf("%v", err)
	}
}

func TestTableIsSound(t *testing.T) {
	c := New()
	names, used := map[string]bool{}, map[string]bool{}
	for _, o := range c.Options() {
		if names[o.Key] || used[o.FlagName()] && o.FlagName() != "" {
			t.Errorf("%s is declared twice", o.Key)
		}
		names[o.Key], used[o.FlagName()] = true, true
		if !strings.HasSuffix(o.Doc, ".") || strings.Contains(o.Doc, "|") {
			t.Errorf("%s: bad documentation: %s", o.Key, o.Doc)
		}
	}
	// The defaults must pass their own checks.
	if errs := c.validate(); len(errs) > 0 {
		t.Error(errs)
	}
}

var update = flag.Bool("update", false, "write docs/config.md")

func TestDocsAreUpToDate(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDocs(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "docs", "config.md")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("go test ./pkg/config -update writes it anew:\n%s", diff)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("socket = '/x'\n[runtimes.a]\nengine = 'oci'\n"))
	f.Add([]byte("a.b = {c = [{d = 1}]}\n[[e]]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "c.toml")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Load(Sources{File: file})
	})
}
