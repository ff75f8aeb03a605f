package engine

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestPackedCgroup(t *testing.T) {
	v1 := map[string]string{}
	for _, h := range []string{"cpu", "cpuacct", "memory", "name=systemd", "pids"} {
		v1[h] = "/sys/fs/cgroup/" + h + "/kubepods/pod1/c1"
	}
	for name, c := range map[string]*Cgroup{
		"nil":         nil,
		"empty":       {},
		"v2":          {Unified: "/sys/fs/cgroup/kubepods/pod1/c1"},
		"v1":          {V1: v1},
		"both":        {Unified: "/sys/fs/cgroup/unified/kubepods/pod1/c1", V1: v1},
		"one":         {V1: map[string]string{"pids": "/p"}},
		"same":        {V1: map[string]string{"cpu": "/a/b", "cpuacct": "/a/b"}},
		"nothing":     {V1: map[string]string{"cpu": "/a", "pids": "/b"}},
		"inside":      {V1: map[string]string{"cpu": "/a/xb/c", "pids": "/a/yb/c"}},
		"contained":   {V1: map[string]string{"cpu": "/c", "pids": "/a/c"}},
		"empty paths": {V1: map[string]string{"cpu": "", "pids": ""}},
		"odd":         {Unified: "/u\n=/\"x", V1: map[string]string{"a=b\n": "/\n/\"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := c.Pack()
			if got := p.Cgroup(); !reflect.DeepEqual(got, c) {
				t.Errorf("%+v came back as %+v", c, got)
			}
			if c != nil {
				if got := p.Dir(""); got != c.Unified {
					t.Errorf("unified %q", got)
				}
				for name, dir := range c.V1 {
					if got := p.Dir(name); got != dir {
						t.Errorf("%s: %q", name, got)
					}
				}
			}
			want, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			var again PackedCgroup
			if got := p.AppendJSON([]byte("x")); string(got[1:]) != string(want) {
				t.Errorf("%s, want %s", got[1:], want)
			} else if err := json.Unmarshal(got[1:], &again); err != nil || again != p {
				t.Errorf("%s came back as %+v, %v", got[1:], again.Cgroup(), err)
			}
			if got := p.Dir("none"); got != "" {
				t.Errorf("none: %q", got)
			}
			if p != c.Pack() || (p == PackedCgroup{}) != (c == nil) {
				t.Error("two of the same differ, or one is taken for none")
			}
		})
	}
	if p := (&Cgroup{V1: v1}).Pack(); p.tail != "/kubepods/pod1/c1" {
		t.Errorf("it ends in %q", p.tail)
	}
	if a, b := (&Cgroup{V1: v1}).Pack(), (&Cgroup{Unified: "/sys/fs/cgroup/kubepods/pod1/c1", V1: v1}).Pack(); a == b {
		t.Error("two that differ are equal")
	}
}

func TestCgroupOwn(t *testing.T) {
	all := func() *Cgroup {
		return &Cgroup{Unified: "/u/p/c", V1: map[string]string{"cpu": "/cpu/p", "memory": "/memory/p", "devices": "/devices/p/c"}}
	}
	shared := all()
	shared.Shared = []string{"cpu", "memory", "none"}
	for name, tt := range map[string]struct{ of, want *Cgroup }{
		"nil":     {nil, nil},
		"nothing": {all(), all()},
		"some":    {shared, &Cgroup{Unified: "/u/p/c", V1: map[string]string{"devices": "/devices/p/c"}}},
	} {
		if got := tt.of.Own(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v", name, got)
		}
		if got := tt.of.Pack().Cgroup(); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: kept is %+v", name, got)
		}
	}
	if len(shared.V1) != 3 {
		t.Errorf("it has changed: %+v", shared)
	}
}

func BenchmarkPackedCgroup(b *testing.B) {
	c := &Cgroup{V1: map[string]string{}}
	for i := range 12 {
		c.V1[fmt.Sprint("controller", i)] = fmt.Sprintf("/sys/fs/cgroup/controller%d/kubepods/pod%s/%s", i, strings.Repeat("p", 36), strings.Repeat("c", 64))
	}
	p := c.Pack()
	b.Run("pack", func(b *testing.B) {
		for b.Loop() {
			p = c.Pack()
		}
	})
	b.Run("unpack", func(b *testing.B) {
		for b.Loop() {
			c = p.Cgroup()
		}
	})
}
