package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recordedHosts are the hosts of the vendors' tests.
var recordedHosts = map[string]string{
	"none": "nvidia", "h200": "nvidia", "a100x8-mig": "nvidia", "minor-differs": "nvidia", "upgraded": "nvidia", "nvidia-and-amd": "nvidia",
	"mi300x-cpx": "amd", "arc": "intel", "amd-and-intel": "intel",
}

func recordedHost(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("../../device", recordedHosts[name], "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// berthOf runs a command in this process, with nothing of the machine's configuration.
func berthOf(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	dir := t.TempDir()
	a := &app{in: strings.NewReader(stdin), out: &out, err: &errs, env: []string{"HOME=" + dir, "BERTH_DATA_DIR=" + filepath.Join(dir, "data")}, dir: dir}
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// golden compares with a file in testdata/gpu.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata/gpu", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", file, diff)
	}
}

func TestGPULs(t *testing.T) {
	for name := range recordedHosts {
		t.Run(name, func(t *testing.T) {
			root := recordedHost(t, name)
			code, out, errs := berthOf(t, "", "gpu", "ls", "--root", root)
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "ls/"+name+".txt", out+"-- standard error\n"+errs)
			code, out, _ = berthOf(t, "", "gpu", "ls", "--root", root, "--format", "json")
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "ls/"+name+".json", out)
		})
	}
}

func TestGPULsBadInput(t *testing.T) {
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "device-nodes"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--root", "/nowhere/at/all"}, 2, "/nowhere/at/all"},
		{[]string{"--root", "/dev/null"}, 2, "it is no directory"},
		{[]string{"--root", broken}, 2, `line 1: "nonsense"`},
		{[]string{"0"}, 2, "it takes no arguments"},
	} {
		code, out, errs := berthOf(t, "", append([]string{"gpu", "ls"}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q", c.args, code, out, errs)
		}
	}
}

// A process that is no task's has a GPU as soon as its node is open, and a task as soon as it is lent.
func TestGPULsHolders(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2})
	f, err := os.OpenFile(h.Path(h.NVIDIA[1].Node.Path), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code, out, errs := berthOf(t, "", "gpu", "ls", "--root", h.Root, "--format", "json")
	if code != 0 {
		t.Fatal(errs)
	}
	var lines []gpuLine
	if err := json.Unmarshal([]byte(out), &lines); err != nil || len(lines) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	mine := func(h gpuHolder) bool { return h.Process != nil && h.Process.PID == os.Getpid() }
	if slices.ContainsFunc(lines[0].HeldBy, mine) || !slices.ContainsFunc(lines[1].HeldBy, mine) {
		t.Error(out)
	}
	_, out, _ = berthOf(t, "", "gpu", "ls", "--root", h.Root)
	if !strings.Contains(out, fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Error(out)
	}
}

func TestGPUExplain(t *testing.T) {
	for name, c := range map[string]struct {
		host string
		args []string
	}{
		"all":         {"h200", []string{"-e", "NVIDIA_VISIBLE_DEVICES=all", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=12.4"}},
		"slice":       {"a100x8-mig", []string{"-e", "NVIDIA_VISIBLE_DEVICES=0:3,5"}},
		"requirement": {"h200", []string{"-e", "NVIDIA_VISIBLE_DEVICES=all", "-e", "NVIDIA_REQUIRE_CUDA=cuda>=13.1"}},
		"upgraded":    {"upgraded", []string{"--gpus", "1"}},
		"amd":         {"mi300x-cpx", []string{"-e", "AMD_VISIBLE_DEVICES=8"}},
		"model":       {"arc", []string{"--gpus", "model=A770"}},
		"least":       {"h200", []string{"--gpus", "memory=40GiB"}},
		"several":     {"a100x8-mig", []string{"--gpus", "memory=40GiB"}},
		"fraction":    {"a100x8-mig", []string{"--gpus", "memory=8GiB,vendor=nvidia"}},
		"profile":     {"a100x8-mig", []string{"--gpus", "mig=1g.10gb,count=2"}},
		"uuid":        {"a100x8-mig", []string{"--gpus", "MIG-7dc499e0-a3ce-5a8e-9a6e-f1b71b58a434"}},
		"memory":      {"mi300x-cpx", []string{"--gpus", "memory=100GiB"}},
		"nothing":     {"none", []string{"-e", "A=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"gpu", "explain", "--root", recordedHost(t, c.host)}, c.args...)
			code, out, errs := berthOf(t, "", args...)
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "explain/"+name+".txt", out+"-- standard error\n"+errs)
			_, out, _ = berthOf(t, "", append(args, "--format", "json")...)
			golden(t, "explain/"+name+".json", out)
		})
	}
}

// The object has these keys and no others, and lists where there is nothing to list.
func TestGPUExplainKeys(t *testing.T) {
	_, out, _ := berthOf(t, "", "gpu", "explain", "--root", recordedHost(t, "none"), "-e", "A=1", "--format", "json")
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	keys := slices.Sorted(maps.Keys(got))
	want := []string{"devices", "driver_capabilities", "edits", "errors", "mig_config_devices", "mig_monitor_devices", "requirements", "strategy", "vendor"}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Error(diff)
	}
	for _, key := range []string{"devices", "edits", "errors", "requirements"} {
		if string(got[key]) != "[]" {
			t.Errorf("%s is %s", key, got[key])
		}
	}
}

func TestGPUExplainBundle(t *testing.T) {
	bundle, root := t.TempDir(), recordedHost(t, "h200")
	file := filepath.Join(bundle, "config.json")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"ociVersion":"1.2.0","process":{"env":["NVIDIA_VISIBLE_DEVICES=0","NVIDIA_MIG_CONFIG_DEVICES=all"]}}`)
	code, out, _ := berthOf(t, "", "gpu", "explain", "--root", root, "--bundle", bundle)
	if code != 0 || !strings.Contains(out, "only a privileged container may have it") {
		t.Errorf("exit code %d, %s", code, out)
	}
	write(`{"ociVersion":"1.2.0","process":{"env":["NVIDIA_VISIBLE_DEVICES=0","NVIDIA_MIG_CONFIG_DEVICES=all"],"capabilities":{"bounding":["CAP_SYS_ADMIN"]}}}`)
	code, out, _ = berthOf(t, "", "gpu", "explain", "--root", root, "--bundle", bundle)
	if code != 0 || !strings.Contains(out, "node /dev/nvidia-caps/nvidia-cap1 235:1") {
		t.Errorf("exit code %d, %s", code, out)
	}
	for text, says := range map[string]string{"{}": "it has no ociVersion", "[": "unexpected end", `{"ociVersion":"1.0.2"}`: "no process"} {
		write(text)
		code, out, errs := berthOf(t, "", "gpu", "explain", "--root", root, "--bundle", bundle)
		if code != 2 || out != "" || !strings.Contains(errs, says) || !strings.Contains(errs, file) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s%s", text, code, out, errs)
		}
	}
}

func TestGPUExplainBadInput(t *testing.T) {
	root := recordedHost(t, "h200")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "what is to be explained"},
		{[]string{"--bundle", "/x", "--gpus", "1"}, 2, "stands alone"},
		{[]string{"--bundle", "/nowhere/at/all"}, 3, "/nowhere/at/all/config.json"},
		{[]string{"-e", "A"}, 2, "write K=V"},
		{[]string{"--gpus", "device=0,1"}, 2, "quote the whole field"},
		{[]string{"--gpus", "2"}, 3, "this host has nvidia 0 (NVIDIA H200"},
		{[]string{"--gpus", "device=7"}, 3, "no device 7"},
		{[]string{"--gpus", "mig=1g.18gb"}, 3, "nothing here fits"},
	} {
		code, out, errs := berthOf(t, "", append([]string{"gpu", "explain", "--root", root}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q", c.args, code, out, errs)
		}
	}
}

// What only NVIDIA's library tells, a berth that cannot ask it does not know, and says so.
func TestWithoutLibrary(t *testing.T) {
	r := device.Request{Count: 1, Memory: 1 << 30}
	_, err := r.Match([]device.Device{{Vendor: "nvidia", UUID: "GPU-1"}})
	if got := withoutLibrary(err, false).Error(); !strings.HasSuffix(got, "; of NVIDIA's, a berth that was built with cgo knows it") {
		t.Error(got)
	}
	if got := withoutLibrary(err, true); got != err { //nolint:errorlint // it is the same
		t.Error(got)
	}
	for request, want := range map[string]string{
		"shared,memory=1GiB":          "nothing here fits, but the memory of 1 is not known: no shares of such can be counted, and the whole is lent to who names it, as in device=0; ",
		"device=0,shared,memory=1GiB": "the memory of 0 is not known, so that no shares of it can be counted; ask for the whole of it; ",
	} {
		share, err := device.ParseRequest(request)
		if err != nil {
			t.Fatal(err)
		}
		_, err = share.Match([]device.Device{{Vendor: "nvidia", UUID: "GPU-1"}})
		if got := withoutLibrary(err, false).Error(); !strings.Contains(got, want) || !strings.HasSuffix(got, "; of NVIDIA's, a berth that was built with cgo knows it") {
			t.Error(got)
		}
	}
	_, err = r.Match([]device.Device{{Vendor: "nvidia", UUID: "GPU-1", Memory: 1 << 20}})
	if got := withoutLibrary(err, false); got != err { //nolint:errorlint // it is the same
		t.Error(got)
	}
}

// A GPU in MIG mode that has no slices is listed, and comes into no container, by whatever convention.
func TestGPUMIGModeWithoutSlices(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2, Recorded: true})
	h.Write("/nvml.json", fmt.Sprintf(`{"gpus":[{"uuid":%q,"mig":true},{"uuid":%q}]}`, h.NVIDIA[0].UUID, h.NVIDIA[1].UUID))
	if _, out, errs := berthOf(t, "", "gpu", "ls", "--root", h.Root); strings.Count(out, "(in MIG mode, without slices)") != 1 {
		t.Error(out, errs)
	}
	if _, out, errs := berthOf(t, "", "cdi", "generate", "--hook", "/h", "--root", h.Root); strings.Contains(out, h.NVIDIA[0].UUID) || !strings.Contains(out, h.NVIDIA[1].UUID) {
		t.Error(out, errs)
	}
	for value, want := range map[string]bool{"all": false, "0": true, h.NVIDIA[0].UUID: true, "1": false} {
		_, out, errs := berthOf(t, "", "gpu", "explain", "--hook", "/h", "--root", h.Root, "-e", "NVIDIA_VISIBLE_DEVICES="+value)
		if strings.Contains(out, h.NVIDIA[0].Node.Path) || strings.Contains(out, "nvidia-smi mig -i 0 -cgi") != want {
			t.Errorf("%s: %s%s", value, out, errs)
		}
	}
}

// A driver that does not answer costs its time limit, and is told; it holds up no command for ever.
func TestGPUDriverHangs(t *testing.T) {
	for name, tt := range map[string]struct {
		fifo string // what nobody writes to
		args []string
		code int
	}{
		"ls":         {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"gpu", "ls"}, 0},
		"use":        {"/sys/bus/pci/devices/0000:50:00.0/gpu_busy_percent", []string{"gpu", "ls"}, 0},
		"topology":   {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"gpu", "topology"}, 0},
		"explain":    {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"gpu", "explain", "--gpus", "1"}, 3},
		"convention": {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"gpu", "explain", "-e", "AMD_VISIBLE_DEVICES=0"}, 5},
		"record":     {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"gpu", "record", "DIR"}, 0},
		"generate":   {"/sys/class/kfd/kfd/topology/nodes/1/properties", []string{"cdi", "generate", "--vendor", "amd"}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
			fifo := h.Path(tt.fifo)
			if err := os.Remove(fifo); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { // who waits for it ends
				if f, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
					time.AfterFunc(10*time.Second, func() { _ = f.Close() })
				}
			})
			var out, errs bytes.Buffer
			dir := t.TempDir()
			a := &app{in: strings.NewReader(""), out: &out, err: &errs, env: []string{"HOME=" + dir, "BERTH_DATA_DIR=" + filepath.Join(dir, "data")}, dir: dir, patience: time.Second}
			code := a.run(t.Context(), append(tt.args, "--root", h.Root))
			if code != tt.code || !strings.Contains(errs.String()+out.String(), "has not answered for 1s") && name != "use" {
				t.Errorf("exit code %d, %s%s", code, out.String(), errs.String())
			}
		})
	}
}

// A GPU that has reported an error is in quarantine, which the list tells, until it is released.
func TestGPURelease(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 2, Recorded: true})
	uuid := h.AMD[1].UUID
	code, out, errs := berthOf(t, "", "gpu", "release", "--root", h.Root, uuid)
	if code != 3 || out != "" || errs != "berth: release GPU "+uuid+": not found in quarantine; nothing is\n" {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	o, err := device.OpenHost(h.Root)
	if err == nil {
		err = device.QuarantineOf(o, t.TempDir()).Put(device.Fault{UUID: uuid, Reason: "uncorrectable error", Time: time.Now().Add(-time.Minute)})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, out, _ := berthOf(t, "", "gpu", "ls", "--root", h.Root); strings.Count(out, "quarantine: uncorrectable error since ") != 1 {
		t.Error(out)
	}
	if _, out, _ := berthOf(t, "", "gpu", "ls", "--root", h.Root, "--format", "json"); !strings.Contains(out, `"reason": "uncorrectable error"`) {
		t.Error(out)
	}
	if code, _, errs := berthOf(t, "", "gpu", "explain", "--root", h.Root, "--gpus", uuid); code != 3 || !strings.Contains(errs, "is in quarantine") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if code, out, errs := berthOf(t, "", "gpu", "release", "--root", h.Root, uuid); code != 0 || out != uuid+"\n" {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	if _, out, _ := berthOf(t, "", "gpu", "ls", "--root", h.Root); strings.Contains(out, "quarantine") {
		t.Error(out)
	}
	// So is one whose error nobody has noted yet.
	h.Write(device.FaultFile, h.AMD[0].UUID+" fan stopped\n")
	if code, out, errs := berthOf(t, "", "gpu", "release", "--root", h.Root, h.AMD[0].UUID); code != 0 || out != h.AMD[0].UUID+"\n" {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	if faults, err := device.QuarantineOf(o, t.TempDir()).Hold(device.FindFaults(o, []device.Device{{UUID: h.AMD[0].UUID}})...); err != nil || len(faults) != 0 {
		t.Errorf("held: %v, %v", faults, err)
	}
}

// TestGPULsLooksForFaults: what only the driver tells of a GPU puts it into quarantine when the list is looked at; on a
// recorded host nothing is noted.
func TestGPULsLooksForFaults(t *testing.T) {
	for _, recorded := range []bool{false, true} {
		t.Run(fmt.Sprintf("recorded %t", recorded), func(t *testing.T) {
			h := devicetest.New(t, devicetest.Options{NVIDIA: 2, Recorded: recorded})
			o, err := device.OpenHost(h.Root)
			if err != nil {
				t.Fatal(err)
			}
			tell := func(fault string) {
				h.Write("/nvml.json", fmt.Sprintf(`{"gpus":[{"uuid":%q,"fault":""},{"uuid":%q,"fault":%q}]}`, h.NVIDIA[0].UUID, h.NVIDIA[1].UUID, fault))
			}
			list := func(want bool) {
				t.Helper()
				_, out, errs := berthOf(t, "", "gpu", "ls", "--root", h.Root)
				if got := strings.Count(out, "quarantine: row remapping failed since ") == 1; got != want || strings.Contains(errs, "noted") {
					t.Errorf("in quarantine: %v, want %v: %s%s", got, want, out, errs)
				}
			}
			tell("")
			list(false)
			tell("row remapping failed")
			list(true)
			if noted := device.QuarantineOf(o).Held(); len(noted) != map[bool]int{false: 1, true: 0}[recorded] {
				t.Errorf("noted: %v", noted)
			}
			code, _, errs := berthOf(t, "", "gpu", "explain", "--root", h.Root, "--gpus", h.NVIDIA[1].UUID)
			if code != 3 || !strings.Contains(errs, "is in quarantine: row remapping failed since ") {
				t.Errorf("exit code %d, %s", code, errs)
			}
			if code, out, errs := berthOf(t, "", "gpu", "release", "--root", h.Root, h.NVIDIA[1].UUID); code != 0 || out != h.NVIDIA[1].UUID+"\n" {
				t.Errorf("exit code %d, %s%s", code, out, errs)
			}
			list(false) // it was released in this state
		})
	}
}

// A recording gives the same answers as the host, command by command.
func TestGPURecord(t *testing.T) {
	for name := range recordedHosts {
		t.Run(name, func(t *testing.T) {
			root, dir := recordedHost(t, name), filepath.Join(t.TempDir(), "recorded")
			if code, out, errs := berthOf(t, "", "gpu", "record", "--root", root, dir); code != 0 || !strings.HasPrefix(out, dir+": ") {
				t.Fatalf("exit code %d, %s%s", code, out, errs)
			}
			for _, args := range [][]string{{"gpu", "ls"}, {"gpu", "ls", "--format", "json"}, {"cdi", "generate"}, {"gpu", "explain", "--gpus", "all"}} {
				code, out, errs := berthOf(t, "", append(args, "--root", root)...)
				gotCode, got, gotErrs := berthOf(t, "", append(args, "--root", dir)...)
				if diff := cmp.Diff(out+errs, got+gotErrs); diff != "" || code != gotCode {
					t.Errorf("%q: exit codes %d, %d, %s", args, code, gotCode, diff)
				}
			}
			if code, _, errs := berthOf(t, "", "gpu", "record", "--root", root, dir); code != 3 || !strings.Contains(errs, "it is not empty") {
				t.Errorf("exit code %d, %s", code, errs)
			}
		})
	}
}

func TestGPUTopology(t *testing.T) {
	for _, name := range []string{"none", "a100x8-mig", "mi300x-cpx", "amd-and-intel", "nvidia-and-amd"} {
		root := recordedHost(t, name)
		code, out, _ := berthOf(t, "", "gpu", "topology", "--root", root)
		_, jsonOut, _ := berthOf(t, "", "gpu", "topology", "--root", root, "--format", "json")
		if code != 0 || !json.Valid([]byte(jsonOut)) {
			t.Errorf("%s: exit code %d, %s", name, code, jsonOut)
		}
		golden(t, "topology/"+name+".txt", out)
	}
	// NVLinks are what the library says of a recorded host, too.
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2, Recorded: true})
	h.Write("/nvml.json", fmt.Sprintf(`{"gpus":[{"uuid":%q,"nvlinks":[{"to":"switch","count":18}]},{"uuid":%q,"nvlinks":[{"to":"switch","count":18}]}]}`, h.NVIDIA[0].UUID, h.NVIDIA[1].UUID))
	if _, out, errs := berthOf(t, "", "gpu", "topology", "--root", h.Root); !strings.Contains(out, "nvidia 0  X         NV18") {
		t.Error(out, errs)
	}
}

// Why a GPU that is there cannot be lent is told where one is asked for.
func TestGPUExplainUnusable(t *testing.T) {
	root := filepath.Join(t.TempDir(), "host")
	if err := os.CopyFS(root, os.DirFS(recordedHost(t, "h200"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "device-nodes"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := berthOf(t, "", "gpu", "explain", "--root", root, "--hook", "/opt/hook", "--gpus", "1")
	if code != 3 || out != "" || !strings.Contains(errs, "/dev/nvidia0: file does not exist; as root, run: nvidia-modprobe") || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}

// Of a host with GPUs of two vendors, a task that names none gets those of one, NVIDIA's first; each has its own nodes.
func TestGPUExplainTwoVendors(t *testing.T) {
	const h200, w7900 = "GPU-edfee158-11c1-52b8-0517-92f30e7fac99", "GPU-0000000123456789"
	for _, c := range []struct {
		request string
		vendor  string
		gets    []string
		says    string
	}{
		{"1", "nvidia", []string{h200}, ""},
		{"all", "nvidia,amd", []string{h200, w7900}, ""},
		{"vendor=amd", "amd", []string{w7900}, ""},
		{"model=W7900", "amd", []string{w7900}, ""},
		{"amd.com/gpu=0", "amd", []string{w7900}, ""},
		{"memory=100GiB", "nvidia", []string{h200}, ""},
		{"2", "", nil, "1 fit; this host has nvidia 0 (NVIDIA H200, " + h200 + ", 140 GiB), amd 0 (Radeon PRO W7900, " + w7900 + ", 48 GiB)"},
		{"device=0", "", nil, "0 is a device of several vendors; say whose, as in vendor=nvidia;"},
		{"vendor=amd,memory=100GiB", "", nil, "nothing here fits"},
	} {
		t.Run(c.request, func(t *testing.T) {
			code, out, errs := berthOf(t, "", "gpu", "explain", "--root", recordedHost(t, "nvidia-and-amd"), "--hook", "/opt/hook", "--gpus", c.request, "--format", "json")
			if c.says != "" {
				if code == 0 || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
					t.Errorf("exit code %d, %q, %q", code, out, errs)
				}
				return
			}
			var d struct {
				Devices []string
				Vendor  string
			}
			if err := json.Unmarshal([]byte(out), &d); err != nil {
				t.Fatal(err, errs)
			}
			if diff := cmp.Diff(c.gets, d.Devices); diff != "" || d.Vendor != c.vendor {
				t.Error(d.Vendor, diff)
			}
			if strings.Contains(out, "/dev/nvidia0") != strings.Contains(c.vendor, "nvidia") || strings.Contains(out, "/dev/kfd") != strings.Contains(c.vendor, "amd") {
				t.Error(out)
			}
		})
	}
}

// TestHeldBy: that nobody is known to have a GPU is told apart from that nobody has it.
func TestHeldBy(t *testing.T) {
	task := gpuHolder{UUID: "GPU-0", Task: "t"}
	for want, l := range map[string]gpuLine{
		"-":                                 {},
		"(other users' processes not seen)": {Unseen: true},
		"task t":                            {Unseen: true, HeldBy: []gpuHolder{task}},
	} {
		if l.UUID = "GPU-0"; l.heldBy("GPU-0") != want {
			t.Errorf("%q, want %q", l.heldBy("GPU-0"), want)
		}
	}
}
