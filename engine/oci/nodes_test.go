package oci_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/sys/userns"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest/nested"
	"github.com/berth-project/berth/image"
)

// noRulesVar says that the host has no device rules for berth.
const noRulesVar = "BERTH_TEST_NO_DEVICE_RULES"

// TestNodesOfImage: a device node that the image carries, in its /dev or elsewhere, cannot be opened unless the task was
// lent the device, nor one that the command makes; what it was lent can.
func TestNodesOfImage(t *testing.T) {
	gpus := lendable(t)
	opens := func(path string) string {
		return "[ -e " + path + " ] || echo no " + path + "; (exec 3<" + path + ") 2>/dev/null && echo opens " + path + "; "
	}
	script := opens("/dev/gpu1") + opens("/usr/gpu1") + "mknod /tmp/gpu1 c " + fmt.Sprintf("%d %d", gpus[1].Major, gpus[1].Minor) + " 2>/dev/null; " + opens("/tmp/gpu1") + opens("/dev/lent") + "(echo x >/dev/null) && echo null; awk '$5 == \"/\" { print $6 ~ /nodev/ ? \"nodev\" : \"dev\" }' /proc/self/mountinfo"
	want := "no /dev/gpu1\nopens /dev/lent\nnull\ndev\n" // berth's /dev lies over that of the image
	switch {
	case userns.RunningInUserNS(): // where no image has nodes
		want = "no /dev/gpu1\nno /usr/gpu1\nno /tmp/gpu1\nopens /dev/lent\nnull\nnodev\n"
	case os.Getenv(noRulesVar) != "":
		want = "no /dev/gpu1\nno /tmp/gpu1\nopens /dev/lent\nnull\nnodev\n"
	}
	kinds := []string{"direct", "direct,read-only", "runc", "runc,read-only"}
	if userns.RunningInUserNS() {
		kinds = append(kinds, "crun,read-only")
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			rt, _, readOnly := strings.Cut(kind, ",")
			want := want
			if readOnly && !strings.Contains(want, "no /tmp/gpu1") { // there it cannot be made
				want = strings.Replace(want, "opens", "no /tmp/gpu1\nopens", 1)
			}
			if rt != "direct" {
				// Some take the option off when they mount the root anew. No node opens all the same: in a file system that
				// was mounted in a user namespace the kernel opens none, whatever the options of the mount.
				want = strings.TrimSuffix(strings.TrimSuffix(want, "nodev\n"), "dev\n")
			}
			e, _ := newEngine(t, rt)
			img, err := e.Images().Import(t.Context(), withNodes(t, gpus[1]), "nodes", image.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			node := gpus[0]
			node.Container = "/dev/lent"
			sb := openSandbox(t, e, berth.SandboxSpec{ID: "nodes", Grants: []berth.Grant{{Vendor: "amd", UUID: "GPU-0", Nodes: []berth.Node{node}}}})
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", script}, ReadOnly: readOnly})
			if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
				t.Errorf("%+v, %v: %s", exit, err, logs(t, c, true))
			}
			got := logs(t, c, false)
			if rt != "direct" {
				got = strings.TrimSuffix(strings.TrimSuffix(got, "nodev\n"), "dev\n")
			}
			if got != want {
				t.Errorf("it says\n%swant\n%s\n%s", got, want, logs(t, c, true))
			}
		})
	}
}

// TestNodesOfImageWithoutRules: the same, where berth can set no device rules: as root of a host whose cgroups have no
// devices controller for it, and as an ordinary user.
func TestNodesOfImageWithoutRules(t *testing.T) {
	if os.Getuid() != 0 || userns.RunningInUserNS() {
		t.Skip("needs root: to become another user")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if !onV2(t) { // there root can always set rules; and runc demands the controller
		without := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/devices && exec "$@"`, "sh", self, "-test.v", "-test.run=^TestNodesOfImage$/^direct")
		without.Env = append(os.Environ(), noRulesVar+"=1")
		out, err := without.CombinedOutput()
		nested.Report(t, out)
		if err != nil && !t.Failed() {
			t.Errorf("%v\n%s", err, out)
		}
	}
	dir := ""
	if onV2(t) {
		dir = delegated(t)
	}
	out, err := asUser(t, dir, nil, nil, "-test.run=^TestNodesOfImage$")
	nested.Report(t, out)
	if err != nil && !t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
}

// withNodes is a root file system with nodes of a device.
func withNodes(t *testing.T, n berth.Node) io.Reader {
	t.Helper()
	var b bytes.Buffer
	from, to := tar.NewReader(busybox(t)), tar.NewWriter(&b)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = to.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(to, from)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []tar.Header{
		{Name: "dev/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "dev/gpu1", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: int64(n.Major), Devminor: int64(n.Minor)},
		{Name: "usr/gpu1", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: int64(n.Major), Devminor: int64(n.Minor)},
	} {
		if err := to.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}
