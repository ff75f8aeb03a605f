package config

import (
	"fmt"
	"io"
	"strings"
)

// WriteDefault writes a file that holds every option with its documentation, commented out: saved as it is, it changes
// nothing, and later versions may change defaults.
func WriteDefault(w io.Writer) error {
	c := New()
	p := printer{w: w}
	p.printf("# Configuration of cri-server. A line without # changes a default.\n")
	for _, o := range append(c.opts, runtimeTable("NAME", &Runtime{})...) {
		p.section(o.Key, o.Key)
		p.printf("\n")
		for _, line := range wrap(o.Doc, 110) {
			p.printf("# %s\n", line)
		}
		p.printf("# %s.%s\n", capital(o.Type()), live(o))
		p.printf("#%s = %s\n", last(o.Key), o.Literal())
	}
	return p.err
}

// Dump writes the values in use as a file that Load reads back. With origin a comment says where each came from.
func (c *Config) Dump(w io.Writer, origin bool) error {
	p := printer{w: w}
	for _, o := range c.Options() {
		p.section(o.Key, "")
		if origin {
			p.printf("%s = %s # %s\n", last(o.Key), o.Literal(), strings.ReplaceAll(o.Origin.String(), "\n", " "))
		} else {
			p.printf("%s = %s\n", last(o.Key), o.Literal())
		}
	}
	return p.err
}

// sections say what the parts of the documentation are about.
var sections = map[string]string{
	"":              "The daemon and its containers",
	"network":       "Pod network",
	"stream":        "Exec, attach and port-forward",
	"image":         "Images",
	"runtimes.NAME": "Runtime handlers",
}

// WriteDocs writes the Markdown page docs/config.md.
func WriteDocs(w io.Writer) error {
	p := printer{w: w}
	p.printf(`# Configuration

<!-- Written by "cri-server config docs"; a test fails when it is not up to date. -->

cri-server needs no configuration. What there is comes, later ones winning, from the defaults, from %s (another file:
%s), from the *.toml files in the directory of the file's name with .d added, in lexical order, and from flags. Unknown
keys are errors. A list in a later file replaces the earlier one; it is not added to.

%s shows this page's options as a file to start from, %s checks a configuration, and %s
tells where each value in use came from. On SIGHUP cri-server reads its configuration again: options marked live take
effect, for others the log says that a restart is needed. A restart disturbs no container.
`, "`"+DefaultFile+"`", "`--config FILE`", "`cri-server config default`", "`cri-server config validate`", "`cri-server config dump --origin`")
	for _, o := range append(New().opts, runtimeTable("NAME", &Runtime{})...) {
		if s := section(o.Key); s != p.sect || p.first() {
			p.sect = s
			p.printf("\n## %s\n\n", sections[s])
			if s != "" {
				p.printf("Section `[%s]`. ", s)
			}
			if s == "runtimes.NAME" {
				p.printf("NAME is what a RuntimeClass names as its handler; `native` is always there. These options have no flags.")
			}
			p.printf("\n\n| Option | Flag | Type | Default | |\n|---|---|---|---|---|\n")
		}
		flag := o.FlagName()
		if flag != "" {
			flag = "`--" + flag + "`"
		}
		p.printf("| `%s` | %s | %s | `%s` | %s%s |\n", last(o.Key), flag, o.Type(), o.Literal(), o.Doc, live(o))
	}
	return p.err
}

func live(o *Option) string {
	if o.Live {
		return " Live."
	}
	return ""
}

func section(key string) string {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i]
	}
	return ""
}

type printer struct {
	w       io.Writer
	sect    string
	started bool
	err     error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// first is true once.
func (p *printer) first() bool {
	f := !p.started
	p.started = true
	return f
}

// section begins the TOML table that key is in; sample tables, which have the name of the key's own, are commented out.
func (p *printer) section(key, sample string) {
	s := section(key)
	if s == p.sect {
		return
	}
	p.sect = s
	if sample != "" && strings.HasPrefix(s, runtimesKey+".") {
		p.printf("\n# One such table for each runtime handler.\n#[%s]\n", s)
		return
	}
	p.printf("\n[%s]\n", s)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// unquote makes a literal fit for a usage text.
func unquote(literal string) string { return strings.Trim(literal, `"`) }

func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}
