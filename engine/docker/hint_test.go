package docker

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestSharedPath(t *testing.T) {
	for msg, want := range map[string]string{
		"no such image": "",
		`invalid mount config for type "bind": bind source path does not exist: /host_mnt/tmp/work`: "/tmp/work",
		`invalid mount config for type "bind": bind source path does not exist: /tmp/work`:          "/tmp/work",
		"bind source path does not exist: /host_mnted/work":                                         "/host_mnted/work",
	} {
		if got := sharedPath(msg); got != want {
			t.Errorf("sharedPath(%q) = %q, want %q", msg, got, want)
		}
	}
}

func TestHint(t *testing.T) {
	dir := t.TempDir()
	if got := hint(noSource + filepath.Join(dir, "gone")); got != "" {
		t.Errorf("of a path that is not there: %q", got)
	}
	got := hint("invalid mount config: " + noSource + "/host_mnt" + dir)
	for _, want := range []string{"Docker cannot access `" + dir + "`", "File Sharing", "status code 400"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

// TestHintOfUnseenPath: a rootless daemon is another user's.
func TestHintOfUnseenPath(t *testing.T) {
	const said = `create: invalid: invalid mount config for type "bind": stat /var/lib/berth/docker/x/volume-0: permission denied`
	if got := hint(said); !strings.Contains(got, "run berth as that user") {
		t.Errorf("it says %q", got)
	}
	if got := hint(`invalid mount config for type "bind": stat /x: no space left on device`); got != "" {
		t.Errorf("of another error: %q", got)
	}
}

// TestHintOfOwnHook: a daemon that has berth's hook for NVIDIA's refuses what berth has lent; nothing else that hooks say is explained.
func TestHintOfOwnHook(t *testing.T) {
	const said = "OCI runtime create failed: error running hook #0: exit status 1, stderr: berth: error: oci-hook: GPU nvidia 0: unavailable: it is lent to "
	if got := hint(said + "42hwlpblfhnyednf"); !strings.Contains(got, "--engine oci") {
		t.Errorf("it says %q", got)
	}
	if got := hint("error running hook #0: exit status 1, stderr: nvidia-container-cli: it is lent to nobody"); got != "" {
		t.Errorf("of another's hook: %q", got)
	}
}
