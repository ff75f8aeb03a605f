package binfmt

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	arm64 = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	s390x = "enabled\ninterpreter /usr/bin/qemu-s390x\nflags: F\noffset 0\n" +
		"magic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
)

func TestInterpreter(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		arch  string
		want  string // the interpreter, or what the error says after a "!"
	}{
		"found":          {map[string]string{"qemu-aarch64": arm64}, "arm64", "/usr/bin/qemu-aarch64-static"},
		"big endian":     {map[string]string{"a": arm64, "b": s390x}, "s390x", "/usr/bin/qemu-s390x"},
		"of another":     {map[string]string{"a": arm64}, "riscv64", "!no interpreter for riscv64"},
		"32 bits":        {map[string]string{"a": arm64}, "arm", "!no interpreter for arm"},
		"disabled":       {map[string]string{"a": "disabled" + strings.TrimPrefix(arm64, "enabled")}, "arm64", "!is disabled"},
		"without flag F": {map[string]string{"a": strings.Replace(arm64, "OCF", "OC", 1)}, "arm64", "!without flag F"},
		"all disabled":   {map[string]string{"status": "disabled\n", "a": arm64}, "arm64", "!binfmt_misc is disabled"},
		"not mounted":    {map[string]string{"status": ""}, "arm64", "!not mounted"},
		"by extension":   {map[string]string{"a": "enabled\ninterpreter /usr/bin/java\nflags: F\nextension .jar\n"}, "arm64", "!no interpreter"},
		"garbage":        {map[string]string{"a": "enabled\noffset -1\nmagic zz\n", "b": "offset 99999\nmagic 7f\n"}, "arm64", "!no interpreter"},
		"unknown":        {map[string]string{"a": arm64}, "vax", "!not known"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"status": "enabled\n", "register": ""}
			maps.Copy(files, c.files)
			for f, text := range files {
				if f == "status" && text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Interpreter(dir, c.arch)
			if why, fails := strings.CutPrefix(c.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("%q, %v; want %q", got, err, why)
				}
			} else if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(arm64)
	f.Fuzz(func(t *testing.T, text string) {
		e := parse(text)
		for _, m := range machines {
			for _, h := range m.headers() {
				e.matches(h)
			}
		}
	})
}
