package cgroupdriver

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// agrees: the short reading says what the whole one says of the same.
func agrees(t *testing.T, d *cgroupfs, path string) {
	t.Helper()
	whole, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Usage(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{Time: got.Time, Swap: whole.Swap, IO: &IOStats{}}
	if c := whole.CPU; c != nil {
		want.CPU = &CPUStats{Usage: c.Usage, PSI: c.PSI}
	}
	if m := whole.Memory; m != nil {
		want.Memory = &MemoryStats{Usage: m.Usage, WorkingSet: m.WorkingSet, RSS: m.RSS, InactiveFile: m.InactiveFile,
			Available: m.Available, Limit: m.Limit, PageFaults: m.PageFaults, MajorPageFaults: m.MajorPageFaults, PSI: m.PSI}
	}
	tasks, err := d.Tasks(path)
	if whole.Pids == nil && !errdefs.IsNotFound(err) || whole.Pids != nil && (err != nil || tasks != whole.Pids.Current) {
		t.Errorf("tasks: %d, %v; stats say %+v", tasks, err, whole.Pids)
	}
	if whole.IO != nil {
		want.IO.PSI = whole.IO.PSI
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %+v %+v\nwant %+v %+v %+v", got, got.CPU, got.Memory, want, want.CPU, want.Memory)
	}
}

func TestUsage(t *testing.T) {
	pressure := "some avg10=1.50 avg60=2.00 avg300=3.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.25 total=1\n"
	files := map[string]string{
		"c/cpu.stat": "usage_usec 300\nuser_usec 200\nsystem_usec 100\n", "c/cpu.pressure": pressure, "c/io.pressure": pressure,
		"c/memory.pressure": pressure, "c/io.stat": "",
		"c/memory.stat":    "anon 100\nfile 50\nactive_file 40\ninactive_file 30\npgfault 5\npgmajfault 2\n",
		"c/memory.current": "200\n", "c/memory.max": "1000\n", "c/memory.events": "max 6\n",
		"c/memory.swap.current": "20\n", "c/memory.swap.max": "60\n", "c/pids.current": "3\n", "c/pids.max": "max\n",
	}
	agrees(t, fake(t, files), "/c")
	agrees(t, fake(t, map[string]string{"c/cpu.stat": "usage_usec 1\n"}), "/c")

	v1 := fake(t, map[string]string{
		"c/cpuacct.usage": "300\n", "c/cpuacct.usage_user": "200\n", "c/cpuacct.usage_sys": "100\n",
		"c/memory.stat":           "rss 1\ninactive_file 1\ntotal_rss 100\ntotal_inactive_file 30\ntotal_pgfault 5\ntotal_pgmajfault 2\ntotal_swap 20\n",
		"c/memory.usage_in_bytes": "2000\n", "c/memory.limit_in_bytes": "4000\n", "c/memory.max_usage_in_bytes": "400\n", "c/memory.failcnt": "6\n",
		"c/memory.memsw.limit_in_bytes": "6000\n", "c/pids.current": "3\n", "c/pids.max": "7\n",
	})
	v1.layout = &layout{v1: map[string]string{"all": v1.unified}}
	v1.hierarchy["cpuacct"], v1.hierarchy["memory"], v1.hierarchy["pids"] = "all", "all", "all"
	agrees(t, v1, "/c")

	// A limit that is nowhere is not read, one that may be the cgroup's own or one above's is.
	const none = "9223372036854771712"
	for name, limits := range map[string][3]string{"none": {none, none, ""}, "of memory": {"3000", none, "3500"}, "above alone": {"3000", none, none}} {
		v1 := v1usage(t, "hierarchical_memory_limit "+limits[0]+"\nhierarchical_memsw_limit "+limits[1]+"\n", limits[2])
		u, err := v1.Usage("/c")
		want := uint64(0)
		if limits[2] == "3500" {
			want = 3500
		}
		if err != nil || u.Memory.Limit != want || (u.Memory.Available != nil) != (want > 0) || u.Swap == nil || u.Swap.Available != nil || u.Swap.Usage != 20 {
			t.Errorf("limit %s: %+v %+v, %v", name, u.Memory, u.Swap, err)
		}
	}

	for _, d := range []*cgroupfs{v1, fake(t, files)} {
		if _, err := d.Usage("/gone"); !errdefs.IsNotFound(err) {
			t.Errorf("of a cgroup that is gone: %v", err)
		}
		if _, err := d.Usage("/../c"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("of a path that leaves the hierarchy: %v", err)
		}
		if _, err := d.Tasks("/gone"); !errdefs.IsNotFound(err) {
			t.Errorf("tasks of a cgroup that is gone: %v", err)
		}
		if _, err := d.Tasks("/../c"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("tasks of a path that leaves the hierarchy: %v", err)
		}
	}
}

// v1usage is a v1 node with one cgroup, /c, whose memory.stat begins so and whose limit is the given one; no file for "".
func v1usage(t *testing.T, stat, limit string) *cgroupfs {
	files := map[string]string{"c/cpuacct.usage": "300\n", "c/memory.stat": stat + "total_rss 100\ntotal_inactive_file 30\ntotal_swap 20\n",
		"c/memory.usage_in_bytes": "2000\n"}
	if limit != "" {
		files["c/memory.limit_in_bytes"] = limit + "\n"
	}
	d := fake(t, files)
	d.layout = &layout{v1: map[string]string{"all": d.unified}}
	d.hierarchy["cpuacct"], d.hierarchy["memory"] = "all", "all"
	return d
}

// TestPick: names that begin like another, odd lines, and files of more than one read.
func TestPick(t *testing.T) {
	dir := t.TempDir()
	text := "rss 1\nrss_huge 2\ntotal_rss\nshmem x\n" + strings.Repeat("filler 0\n", 9000) + "last 18446744073709551615"
	if err := os.WriteFile(dir+"/f", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var rss, huge, total, shmem, last uint64
	total = 7
	err := pick(at(dir), "f", counter{"rss", &rss}, counter{"rss_huge", &huge}, counter{"total_rss", &total}, counter{"shmem", &shmem}, counter{"last", &last})
	if err != nil || rss != 1 || huge != 2 || total != 7 || shmem != 0 || last != 1<<64-1 {
		t.Errorf("%d %d %d %d %d, %v", rss, huge, total, shmem, last, err)
	}
	if err := pick(at(dir), "none"); !os.IsNotExist(err) {
		t.Errorf("no file: %v", err)
	}
}

// TestDirectory: an open one and one that is only named give the same.
func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/n", []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened, err := openDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.close()
	for name, d := range map[string]directory{"open": opened, "named": at(dir)} {
		if n, ok, err := d.number("n"); n != 7 || !ok || err != nil {
			t.Errorf("%s: %d %v %v", name, n, ok, err)
		}
		if _, _, err := d.number("none"); !os.IsNotExist(err) || !strings.Contains(err.Error(), dir+"/none") {
			t.Errorf("%s: no file: %v", name, err)
		}
	}
	for _, name := range []string{"none", "n"} {
		if _, err := openDirectory(dir + "/" + name); err == nil || !strings.Contains(err.Error(), dir+"/"+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	at(dir).close()
}
