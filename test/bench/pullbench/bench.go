package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// registryAddress is that of the one registry; the name in images has a port, which makes all runtimes take it for one.
const registryAddress = "127.0.0.1:5077"

func bench(ctx context.Context, o options) (err error) {
	if err := enter(); err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "pullbench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.dir)
		if err := mountLoop(o.dir); err != nil {
			return err
		}
		defer func() { _ = unix.Unmount(o.dir, unix.MNT_DETACH) }() // before the directory is removed
	}
	srv, err := imagetest.Serve(registryAddress)
	if err != nil {
		return err
	}
	defer srv.Close()
	for _, r := range recipes {
		if !slices.Contains(o.images, r.name) {
			continue
		}
		b, err := r.load(o.cache)
		if err != nil {
			return fmt.Errorf("image %s: %w", r.name, err)
		}
		srv.Put(r.name, "v1", b)
	}
	all, err := peers(o)
	if err != nil {
		return err
	}
	for _, p := range all {
		defer p.stop()
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	results := map[string]map[*peer][]sample{}
	for round := range o.rounds + 1 { // the first warms up: connections, heaps, directories
		for _, image := range o.images {
			for i := range all {
				p := all[(i+round)%len(all)]
				s, err := p.pull(ctx, srv.Host+"/"+image+":v1")
				if err != nil {
					return fmt.Errorf("%s: %w", image, err)
				}
				if round == 0 {
					continue
				}
				if results[image] == nil {
					results[image] = map[*peer][]sample{}
				}
				results[image][p] = append(results[image][p], s)
				fmt.Fprintf(os.Stderr, "%d %s %s: %d ms, CPU %d ms, %d MB\n", round, image, p.name, s.wall.Milliseconds(), s.cpu.Milliseconds(), s.rss>>20)
			}
		}
	}
	return report(o, all, results)
}

// mountLoop mounts a fresh ext4 on dir, which goes with the mount namespace.
func mountLoop(dir string) error {
	img := dir + ".img"
	defer os.Remove(img) // the mount keeps it
	for _, c := range [][]string{{"truncate", "-s", "20G", img}, {"mkfs.ext4", "-q", "-F", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

func report(o options, all []*peer, results map[string]map[*peer][]sample) error {
	rows := [][]string{{"image", "runtime", "durable", "wall ms", "min–max", "CPU ms", "peak MB", "wall : cri-server", "CPU"}}
	for _, image := range o.images {
		base := results[image][all[0]]
		for _, p := range all {
			s := results[image][p]
			wall := func(s sample) float64 { return float64(s.wall) / float64(time.Millisecond) }
			cpu := func(s sample) float64 { return float64(s.cpu) / float64(time.Millisecond) }
			rss := func(s sample) float64 { return float64(s.rss) / (1 << 20) }
			least := slices.MinFunc(s, func(a, b sample) int { return int(a.wall - b.wall) })
			most := slices.MaxFunc(s, func(a, b sample) int { return int(a.wall - b.wall) })
			rows = append(rows, []string{image, p.name, p.durable, fmt.Sprintf("%.0f", median(s, wall)), fmt.Sprintf("%.0f–%.0f", wall(least), wall(most)),
				fmt.Sprintf("%.0f", median(s, cpu)), fmt.Sprintf("%.0f", median(s, rss)), fmt.Sprintf("%.2f", median(s, wall)/median(base, wall)),
				fmt.Sprintf("%.2f", median(s, cpu)/median(base, cpu))})
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	if err := t.Flush(); err != nil || o.doc == "" {
		return err
	}
	return os.WriteFile(o.doc, []byte(page(o, rows)), 0o644)
}

// page is the table for people to read.
func page(o options, rows [][]string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "## Pulling images\n\n`make bench-pull`, %s: medians of %d rounds, in which the runtimes take turns for every image, from one registry on loopback; "+
		"each in a root of its own on the same ext4, in a file in memory. Durable: whether layers are synced before the call returns; containerd-sync is containerd "+
		"told to. CPU and memory are the runtime's and its children's.\n\n", time.Now().UTC().Format("2006-01-02"), o.rounds)
	for i, r := range rows {
		s.WriteString("| " + strings.Join(r, " | ") + " |\n")
		if i == 0 {
			s.WriteString("|---|---|---|" + strings.Repeat("--:|", len(r)-3) + "\n")
		}
	}
	return s.String()
}

func median(list []sample, of func(sample) float64) float64 {
	v := make([]float64, 0, len(list))
	for _, s := range list {
		v = append(v, of(s))
	}
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}
