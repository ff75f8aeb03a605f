package config

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/pflag"
)

// flagValue keeps a flag's text until Load sets it, and checks it at once so that a bad one is refused with the usage.
type flagValue struct {
	o    *Option // of a Config of its own, for the check
	text string
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return f.o.Type() }

func (f *flagValue) Set(s string) error {
	if err := f.o.value.setText(s); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	f.text = s
	return nil
}

// BindFlags adds a flag for every option that has one to fs, which then goes to Load.
func BindFlags(fs *pflag.FlagSet) {
	for _, o := range New().opts {
		f := fs.VarPF(&flagValue{o: o}, o.FlagName(), "", o.Doc)
		f.DefValue = unquote(o.Default)
		if o.Type() == "boolean" {
			f.NoOptDefVal = "true"
		}
	}
}

func (c *Config) readFlags(fs *pflag.FlagSet) []error {
	if fs == nil {
		return nil
	}
	var errs []error
	for _, o := range c.opts {
		f := fs.Lookup(o.FlagName())
		if f == nil || !f.Changed {
			continue
		}
		o.Origin = Origin{Flag: f.Name}
		if err := o.value.setText(f.Value.String()); err != nil {
			errs = append(errs, o.errorf("%v", err))
		}
	}
	return errs
}
