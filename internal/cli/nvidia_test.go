//go:build cgo

package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// nvidiaGPU is what nvidia-smi tells of a GPU.
type nvidiaGPU struct{ index, uuid, pci, name, driver string }

// parseSMI reads what nvidia-smi answers to TestOnNVIDIA.
func parseSMI(text string) (gpus []nvidiaGPU, err error) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ", ")
		if len(f) != 5 {
			return nil, fmt.Errorf("nvidia-smi: %q", line)
		}
		domain, rest, _ := strings.Cut(strings.ToLower(f[2]), ":")
		n, err := strconv.ParseUint(domain, 16, 32)
		if err != nil {
			return nil, fmt.Errorf("nvidia-smi: PCI address %q", f[2])
		}
		gpus = append(gpus, nvidiaGPU{f[0], f[1], fmt.Sprintf("%04x:%s", n, rest), f[3], f[4]})
	}
	return gpus, nil
}

// onNVIDIA is what must be true on a machine with NVIDIA GPUs, which are free. The tests of the tag gpu run it where they are
// real; here they stand for such. A program computes, and holds its memory for so many seconds.
func onNVIDIA(t *testing.T, b *bench, gpus []nvidiaGPU, seconds string) {
	dir, err := cdiHook()
	if err != nil {
		t.Fatal(err)
	}
	b.env = append(b.env, "PATH="+dir+":"+os.Getenv("PATH"))
	b.importCUDA(t)
	t.Run("enumeration", func(t *testing.T) { b.enumerates(t, gpus) })
	for _, g := range gpus {
		t.Run("granted "+g.index, func(t *testing.T) { b.computes(t, g, seconds) })
	}
	t.Run("not granted", b.grantsNothing)
	t.Run("requirements", b.gates)
	t.Run("turns", b.takesTurns)
	t.Run("killed", b.freesOfKilled)
	t.Run("preflight", func(t *testing.T) {
		if out, code := b.output("run", "--gpu-preflight", "--gpus", "all", "cuda", "/cuda"); code != 0 {
			t.Errorf("%d, %s", code, out)
		}
	})
}

// importCUDA makes the image cuda, of a program that uses CUDA and what it needs of libc.
func (b *bench) importCUDA(t *testing.T) {
	t.Helper()
	program := filepath.Join(b.dir, "cuda")
	if out, err := exec.Command("cc", "-o", program, "testdata/cuda/cuda.c", "-ldl", "-lm", "-lpthread", "-lrt", "-Wl,--no-as-needed").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	put := func(name, from string) {
		data, err := os.ReadFile(from)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg})
		}
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("/cuda", program)
	put("/bin/sh", "/bin/busybox")
	put("/bin/cat", "/bin/busybox")
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	libraries := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(`).FindAllStringSubmatch(string(out), -1) {
		libraries[m[1]] = true
		for _, name := range []string{"libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"} { // which the driver's library needs
			if beside := filepath.Join(filepath.Dir(m[1]), name); isFile(beside) {
				libraries[beside] = true
			}
		}
	}
	for name := range libraries {
		put(name, name)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := b.berth("image", "import", "-", "cuda")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// enumerates compares what berth finds with nvidia-smi, and the nodes with the driver's minor numbers.
func (b *bench) enumerates(t *testing.T, want []nvidiaGPU) {
	raw, err := b.berth("gpu", "ls", "--format", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []device.Device
	if err := json.Unmarshal(raw, &found); err != nil {
		t.Fatal(err)
	}
	var got []nvidiaGPU
	for _, d := range found {
		if d.Vendor == "nvidia" {
			got = append(got, nvidiaGPU{strconv.Itoa(d.Index), d.UUID, d.PCI, d.Model, d.Driver})
			t.Logf("%s: minor %d, memory %s, CUDA %s, arch %s", d, d.Minor, memoryOf(d.Memory), d.CUDA, d.Arch)
		}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(nvidiaGPU{})); diff != "" {
		t.Error("nvidia-smi and berth differ:", diff)
	}
}

// computes has a task compute on the one GPU that it is lent, and finds what it has used in its record.
func (b *bench) computes(t *testing.T, g nvidiaGPU, seconds string) {
	result := filepath.Join(t.TempDir(), "r.json")
	out, code := b.output("run", "--result", result, "--gpus", g.uuid, "cuda", "/cuda", seconds)
	t.Logf("%s", out)
	if code != 0 || !strings.Contains(out, ", 1 GPUs\n") || !strings.Contains(out, g.uuid) || !strings.Contains(out, "\ncomputed\n") {
		t.Errorf("%d, %s; want one GPU, %s, to have computed", code, out, g.uuid)
	}
	var res berth.Result
	data, err := os.ReadFile(result)
	if err == nil {
		err = json.Unmarshal(data, &res)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Usage.GPUs) != 1 || res.Usage.GPUs[0].UUID != g.uuid {
		t.Fatalf("%+v", res.Usage)
	}
	use, _ := json.Marshal(res.Usage.GPUs[0])
	t.Logf("used: %s", use)
	if u := res.Usage.GPUs[0]; u.Unknown == "" && (u.PeakMemory == nil || *u.PeakMemory < 64<<20) {
		t.Errorf("%s; the program has had 64 MiB for seconds", use)
	}
}

// grantsNothing: without a grant there is no library, no node, and none that the container makes itself opens.
func (b *bench) grantsNothing(t *testing.T) {
	out, code := b.output("run", "cuda", "/cuda")
	if code == 0 || !strings.Contains(out, "no library") {
		t.Errorf("%d, %s", code, out)
	}
	out, code = b.output("run", "-e", "NVIDIA_VISIBLE_DEVICES=all", "bb", "sh", "-c", "ls /dev | grep nvidia")
	if code != 1 || out != "" {
		t.Errorf("%d, %s; want no node", code, out)
	}
	raw, err := b.berth("gpu", "explain", "--gpus", "1", "--format", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	node := regexp.MustCompile(`"path": "/dev/nvidia\d+",(?:[^}]*?"hostPath"[^,]*,)?[^}]*?"major": (\d+)(?:,\s*"minor": (\d+))?`).FindStringSubmatch(string(raw))
	if node == nil {
		t.Fatalf("no node in %s", raw)
	}
	if node[2] == "" {
		node[2] = "0"
	}
	out, code = b.output("run", "--cap-add", "MKNOD", "bb", "sh", "-c", "mknod /tmp/gpu c "+node[1]+" "+node[2]+" && (: </tmp/gpu)")
	if code == 0 || !strings.Contains(out, "Operation not permitted") {
		t.Errorf("%d, %s; want an own node of %s:%s not to open", code, out, node[1], node[2])
	}
}

// gates: what an image requires of the driver is looked at before the start.
func (b *bench) gates(t *testing.T) {
	if out, code := b.output("run", "--gpus", "1", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=99.0", "cuda", "/cuda"); code != 125 || !strings.Contains(out, `requires "cuda>=99.0"`) {
		t.Errorf("%d, %s", code, out)
	}
	if out, code := b.output("run", "--gpus", "1", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=1.0", "cuda", "/cuda"); code != 0 {
		t.Errorf("%d, %s", code, out)
	}
	if out, code := b.output("run", "--gpus", "1", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=99.0", "-e", "NVIDIA_DISABLE_REQUIRE=1", "cuda", "/cuda"); code != 0 {
		t.Errorf("%d, %s", code, out)
	}
}

// takesTurns: tasks that want the same GPUs run one after another.
func (b *bench) takesTurns(t *testing.T) {
	var times [3][2]float64
	var wg sync.WaitGroup
	for i := range times {
		wg.Go(func() {
			raw, err := b.berth("run", "--quiet", "--gpus", "all", "bb", "sh", "-c", "cat /proc/uptime; sleep 0.3; cat /proc/uptime").Output()
			if err != nil {
				t.Error(err)
			}
			var idle float64
			if _, err := fmt.Sscan(string(raw), &times[i][0], &idle, &times[i][1], &idle); err != nil {
				t.Errorf("%q: %v", raw, err)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(times[:], func(a, b [2]float64) int { return int(1e3 * (a[0] - b[0])) })
	t.Log("seconds of uptime at begin and end:", times)
	for i := 1; i < len(times); i++ {
		if times[i][0] < times[i-1][1] {
			t.Errorf("%v had the GPUs at once", times)
		}
	}
}

// freesOfKilled: kill -9 of a berth frees what its task had, once the container is gone.
func (b *bench) freesOfKilled(t *testing.T) {
	cmd, _, _ := b.start("--gpus", "all", "bb", "sh", "-c", "echo up; sleep 1000")
	if out, code := b.output("run", "--no-wait", "--gpus", "all", "bb", "true"); code != 125 || !strings.Contains(out, "no room now") {
		t.Errorf("%d, %s; want the GPUs to be lent", code, out)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if out, code := b.output("run", "--gpus", "all", "cuda", "/cuda"); code != 0 {
		t.Errorf("%d, %s", code, out)
	}
}

// The same with nodes that are no GPUs' and a library that is no driver's: it is shown that the checks see what they look at,
// and what berth does with what it is told.
func TestOnNoNVIDIA(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2})
	b := newBench(t, "BERTH_GPU_ROOT="+h.Root)
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", h.Path("/usr/lib/x86_64-linux-gnu/libcuda.so."+devicetest.DriverVersion), "testdata/cuda/stub.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var smi strings.Builder
	for i, g := range h.NVIDIA {
		fmt.Fprintf(&smi, "%d, %s, 00000000:%02X:00.0, NVIDIA H200, %s\n", i, g.UUID, 0x10+i, devicetest.DriverVersion)
	}
	gpus, err := parseSMI(smi.String())
	if err != nil {
		t.Fatal(err)
	}
	onNVIDIA(t, b, gpus, "0")
}
