package config

// Change is an option whose configured value is not the one in use.
type Change struct {
	Key      string
	Old, New string // TOML literals
	// Live changes are in effect with the Config that Reload returned; others need a restart.
	Live bool
}

// Reload reads the sources of c again. The result is c with the live options as they are now, and what differs from c. On
// error c stays good.
func (c *Config) Reload() (*Config, []Change, error) {
	fresh, err := Load(c.src)
	if err != nil {
		return nil, nil, err
	}
	next := c.clone()
	var changes []Change
	for _, o := range fresh.Options() {
		old := c.Lookup(o.Key)
		if old == nil {
			changes = append(changes, Change{Key: o.Key, New: o.Literal()})
			continue
		}
		if old.Literal() == o.Literal() {
			continue
		}
		changes = append(changes, Change{Key: o.Key, Old: old.Literal(), New: o.Literal(), Live: o.Live})
		if o.Live {
			n := next.Lookup(o.Key)
			n.Origin = o.Origin
			if err := n.value.assign(o.value); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, o := range c.Options() {
		if fresh.Lookup(o.Key) == nil {
			changes = append(changes, Change{Key: o.Key, Old: o.Literal()})
		}
	}
	return next, changes, nil
}

// clone copies the values; slices are shared, for nobody writes to them.
func (c *Config) clone() *Config {
	n := New()
	n.src = c.src
	for _, name := range c.handlerNames() {
		n.runtimeOptions(name)
	}
	to := n.Options()
	for i, o := range c.Options() {
		to[i].Origin = o.Origin
		_ = to[i].value.assign(o.value) // the same table on both sides
	}
	return n
}
