package docker

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
)

// TestUsageByProcess reads what a container uses in the cgroups that its first process is in.
func TestUsageByProcess(t *testing.T) {
	id, other := strings.Repeat("0a", 32), strings.Repeat("1b", 32)
	scope := "system.slice/docker-" + id + ".scope"
	for _, row := range []struct {
		name, cgroup string // what /proc says
		files        map[string]string
		want         *berth.Usage // nil: its cgroup is not found
	}{
		{
			"systemd, on v2", "0::/" + scope + "\n",
			map[string]string{scope + "/cpu.stat": "usage_usec 1500000\nuser_usec 7\n", scope + "/memory.current": "100\n", scope + "/memory.peak": "200\n", scope + "/pids.current": "3\n"},
			&berth.Usage{CPUSeconds: new(1.5), Memory: new(int64(100)), PeakMemory: new(int64(200)), PIDs: new(int64(3))},
		},
		{
			"with a cgroup of its own in it", "0::/" + scope + "/init.scope\n",
			map[string]string{scope + "/pids.current": "3\n", scope + "/init.scope/pids.current": "1\n"},
			&berth.Usage{PIDs: new(int64(3))},
		},
		{
			"another path for each, on v1", "12:pids:/docker/" + id + "\n4:cpu,cpuacct:/docker/" + id + "\n2:memory:/" + scope + "\n1:name=systemd:/elsewhere\n0::/elsewhere\n",
			map[string]string{
				"pids/docker/" + id + "/pids.current": "2\n", "cpuacct/docker/" + id + "/cpuacct.usage": "2500000000\n",
				"memory/" + scope + "/memory.usage_in_bytes": "10\n", "memory/" + scope + "/memory.max_usage_in_bytes": "20\n", "elsewhere/pids.current": "99\n",
			},
			&berth.Usage{CPUSeconds: new(2.5), Memory: new(int64(10)), PeakMemory: new(int64(20)), PIDs: new(int64(2))},
		},
		{"another container's process", "0::/system.slice/docker-" + other + ".scope\n", nil, nil},
		{"a process of none", "0::/user.slice\n", nil, nil},
	} {
		dir := t.TempDir()
		write := func(name, text string) {
			t.Helper()
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("proc/7/cgroup", row.cgroup)
		for name, text := range row.files {
			write("cgroup/"+name, text)
		}
		f := cgroupOf(filepath.Join(dir, "proc"), filepath.Join(dir, "cgroup"), 7, id)
		if (f == nil) != (row.want == nil) {
			t.Errorf("%s: found %+v", row.name, f)
			continue
		}
		if f == nil {
			continue
		}
		if diff := cmp.Diff(*row.want, readLive(*f)); diff != "" {
			t.Errorf("%s: %s", row.name, diff)
		}
	}
	if f := cgroupOf(t.TempDir(), "/", 7, id); f != nil {
		t.Error("of a process that has ended: " + fmt.Sprint(f))
	}
}

// TestCgroupLookedForOnce: a container whose cgroup is not found while it runs is not asked for again; one that does not run yet is.
func TestCgroupLookedForOnce(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked, pid atomic.Int64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/containers/") {
			w.Header().Set("Api-Version", "1.45")
			_, _ = io.WriteString(w, "OK")
			return
		}
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"Id": %q, "State": {"Status": "running", "Running": true, "Pid": %d}}`, strings.Repeat("0a", 32), pid.Load())
	})}
	go func() { _ = server.Serve(l) }() // ends with the server
	defer func() { _ = server.Close() }()
	e, err := New(Config{Host: "unix://" + socket, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	c := e.life("sandbox", "step")
	c.sb = &Sandbox{e: e}
	for _, row := range []struct{ pid, asked int64 }{{0, 1}, {0, 2}, {int64(os.Getpid()), 3}, {int64(os.Getpid()), 3}} {
		pid.Store(row.pid)
		if f := c.files(t.Context()); f != nil || asked.Load() != row.asked {
			t.Errorf("pid %d: asked %d times, want %d; found %v", row.pid, asked.Load(), row.asked, f)
		}
	}
}

// TestPeaks: what was the most at any look is kept, by the kernel's count or by what was there.
func TestPeaks(t *testing.T) {
	before := berth.Usage{CPUSeconds: new(1.0), PeakMemory: new(int64(50)), PeakPIDs: new(int64(4))}
	for _, row := range []struct {
		name      string
		now, want berth.Usage
	}{
		{"less than before", berth.Usage{CPUSeconds: new(2.0), Memory: new(int64(10)), PIDs: new(int64(1))}, berth.Usage{CPUSeconds: new(2.0), PeakMemory: new(int64(50)), PeakPIDs: new(int64(4))}},
		{"more now", berth.Usage{CPUSeconds: new(2.0), Memory: new(int64(60)), PIDs: new(int64(5))}, berth.Usage{CPUSeconds: new(2.0), PeakMemory: new(int64(60)), PeakPIDs: new(int64(5))}},
		{
			"more between, by the kernel's count",
			berth.Usage{CPUSeconds: new(2.0), Memory: new(int64(10)), PIDs: new(int64(1)), PeakMemory: new(int64(70)), PeakPIDs: new(int64(9))},
			berth.Usage{CPUSeconds: new(2.0), PeakMemory: new(int64(70)), PeakPIDs: new(int64(9))},
		},
	} {
		if diff := cmp.Diff(row.want, peaks(before, row.now)); diff != "" {
			t.Errorf("%s: %s", row.name, diff)
		}
	}
}

// TestPeakAtLimit: of a container that was ended at its memory limit, and had no cgroup of its step's, that limit is the peak,
// whatever a look has seen before.
func TestPeakAtLimit(t *testing.T) {
	const limit = 64 << 20
	at := time.Now().UTC().Format(time.RFC3339Nano)
	state := &container.State{Status: container.StateExited, ExitCode: 137, OOMKilled: true, StartedAt: at, FinishedAt: at}
	r := &record{Limits: berth.Limits{Memory: limit}}
	l := &life{e: &Engine{host: &hostInfo{}}, dir: t.TempDir(), rec: r, used: berth.Usage{PeakMemory: new(int64(10 << 20))}}
	if e := l.exitOf(r, state, nil, nil); e.Reason != berth.OutOfMemory || e.Usage.PeakMemory == nil || *e.Usage.PeakMemory != limit {
		t.Errorf("exit %+v, usage %+v", e, e.Usage)
	}
}
