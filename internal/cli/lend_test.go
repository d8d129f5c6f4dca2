package cli

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// Tasks of many processes of berth, of which some are killed: no GPU is ever open in two containers at once, and none is
// lost.
func TestGPUsAreInOneContainer(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 4})
	b := newBench(t, "BERTH_GPU_ROOT="+h.Root)
	const script = `set -- /dev/dri/renderD*; exec 5<$1; [ -z "$2" ] || exec 6<$2; sleep 0.0$0`
	used, stop := watchGPUs(t, h.AMD)
	const processes = 8
	tasks := 5
	if n, err := strconv.Atoi(os.Getenv("BERTH_TEST_GPU_TASKS")); err == nil { // all together
		tasks = n / processes
	}
	var wg sync.WaitGroup
	var ended, killed atomic.Int64
	for i := range processes {
		wg.Go(func() {
			for k := range tasks {
				cmd := b.berth("run", "--quiet", "--gpus", []string{"1", "2"}[(i+k)%2], "bb", "sh", "-c", script, string(rune('1'+rand.IntN(9))))
				var out strings.Builder
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				if (i+k)%3 == 0 {
					timer := time.AfterFunc(time.Duration(rand.IntN(400))*time.Millisecond, func() { _ = cmd.Process.Kill() })
					defer timer.Stop()
				}
				err := cmd.Wait()
				switch status := cmd.ProcessState.Sys().(syscall.WaitStatus); {
				case err == nil:
					ended.Add(1)
				case status.Signaled() && status.Signal() == syscall.SIGKILL:
					killed.Add(1)
				default:
					t.Errorf("%v: %s", err, out.String())
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d tasks ended, of %d berth was killed", ended.Load(), killed.Load())
	if killed.Load() == 0 || ended.Load() == 0 {
		t.Error("the test saw nothing")
	}
	stop()
	// Which of them are is the machine's speed: the last is lent where the others all are.
	if len(used) < 2 {
		t.Errorf("only %d GPUs were seen in use", len(used))
	}
	if out, code := b.output("run", "--gpus", "all", "bb", "true"); code != 0 {
		t.Errorf("after all: %d, %s", code, out)
	}
	b.clean()
}

// watchGPUs looks all the time in which containers GPUs are open, until it is stopped: used has those that were.
func watchGPUs(t *testing.T, gpus []devicetest.GPU) (used map[device.Number]bool, stop func()) {
	used = map[device.Number]bool{}
	uuids := map[device.Number]string{}
	for _, g := range gpus {
		uuids[g.Node.Number()] = g.UUID
	}
	numbers := slices.Collect(maps.Keys(uuids))
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
			}
			found, err := device.FindOpeners(t.Context(), numbers)
			if err != nil {
				t.Error(err)
				return
			}
			for n, processes := range found.Of {
				containers := map[string]bool{}
				for _, p := range processes {
					// Other hosts of other tests have the same nodes.
					env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
					ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
					if err == nil && bytes.Contains(env, []byte(uuids[n])) {
						containers[ns] = true
					}
				}
				used[n] = used[n] || len(containers) > 0
				if len(containers) > 1 {
					t.Errorf("%v is open in %d containers: %v", n, len(containers), processes)
				}
			}
		}
	})
	return used, func() {
		close(ended)
		wg.Wait()
	}
}
