package docker

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

func TestBroken(t *testing.T) {
	roomy, full := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal("needs root:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	const (
		mounting = `OCI runtime create failed: runc create failed: unable to start container process: error during container init: error mounting %s: no such file or directory: unknown`
		quoting  = `OCI runtime create failed: container_linux.go:346: starting container process caused "process_linux.go:449: container init caused \"rootfs_linux.go:58: mounting %s caused \\\"no such file or directory\\\"\"": unknown`
		space    = "mkdir /var/lib/docker/overlay2/x: no space left on device"
	)
	for _, row := range []struct {
		said   string
		root   string
		broken bool
	}{
		{`OCI runtime create failed: container_linux.go:380: starting container process caused: process_linux.go:545: container init caused: rootfs_linux.go:76: mounting "/sys/fs/cgroup" to rootfs at "/sys/fs/cgroup" caused: no such file or directory: unknown`, "", true},
		{fmt.Sprintf(mounting, `"cgroup" to rootfs at "/sys/fs/cgroup"`), "", true},
		{fmt.Sprintf(mounting, `"proc" to rootfs at "/proc"`), "", true},
		{fmt.Sprintf(mounting, `"/var/lib/docker/containers/x/hosts" to rootfs at "/etc/hosts"`), "", false}, // by the image's link
		{fmt.Sprintf(mounting, `"/data/a\" to rootfs at \"/proc\"" to rootfs at "/in"`), "", false},          // by an input's name
		{fmt.Sprintf(mounting, `"/data/mounting \"proc\" to rootfs at \"/proc\"" to rootfs at "/in"`), "", false},
		{fmt.Sprintf(quoting, `\\\"cgroup\\\" to rootfs \\\"/var/lib/docker/overlay2/0a/merged\\\" at \\\"/sys/fs/cgroup\\\"`), "", true}, // Docker 19.03's
		{fmt.Sprintf(quoting, `\\\"/data/a\\\" to rootfs \\\"/var/lib/docker/overlay2/0a/merged\\\" at \\\"/in\\\"`), "", false},
		{fmt.Sprintf(quoting, `\\\"/data/a\\\\\\\" to rootfs at \\\\\\\"/proc\\\\\\\"\\\" to rootfs \\\"/var/lib/docker/overlay2/0a/merged\\\" at \\\"/in\\\"`), "", false},
		{"grpc: the connection is unavailable", "", true},
		{`connection error: desc = "transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: connection refused": unavailable`, "", true},
		{fmt.Sprintf(mounting, `"/data/grpc: the connection is unavailable" to rootfs at "/in"`), "", false},
		{space, full, true},
		{space, roomy, false},
		{space, filepath.Join(roomy, "none"), true},
		{fmt.Sprintf(mounting, `"/data/no space left on device" to rootfs at "/in"`), "", false},
		{"the daemon did not answer within 2m0s: unavailable", "", false}, // what it was asked for may have begun
		{`exec: "none": executable file not found in $PATH: unknown`, "", false},
		{"bind source path does not exist: /x", "", false},
	} {
		e := &Engine{host: &hostInfo{root: row.root}}
		err := fmt.Errorf("start s1: %w", wrapHost(t.Context(), "create", errors.New(row.said)))
		if b, a := e.Broken(err); b != row.broken || a != row.broken {
			t.Errorf("%s: broken %v, answered %v", row.said, b, a)
		}
		// A registry may say all of that.
		if b, a := e.Broken(wrap(t.Context(), "pull x", errors.New(row.said))); b || a {
			t.Errorf("by a pull: %s: broken %v, answered %v", row.said, b, a)
		}
	}
	e := &Engine{}
	refused := wrapHost(t.Context(), "create", fmt.Errorf("%w: no such mount: /in/grpc: the connection is unavailable", berth.ErrInvalid))
	if b, _ := e.Broken(refused); b {
		t.Errorf("broken: %v", refused)
	}
	if b, _ := e.Broken(nil); b {
		t.Error("broken without an error")
	}
}

// TestBrokenUnreachable: that a daemon takes no connections is the client's word, and nobody else's.
func TestBrokenUnreachable(t *testing.T) {
	api, err := client.New(client.WithHost("unix://" + filepath.Join(t.TempDir(), "none.sock")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = api.ImageInspect(t.Context(), "x")
	err = fmt.Errorf("image x: %w", wrap(t.Context(), "inspect", err))
	if b, a := (&Engine{}).Broken(err); !b || a {
		t.Errorf("%v: broken %v, answered %v", err, b, a)
	}
	if b, _ := (&Engine{}).Broken(errors.New(err.Error())); b {
		t.Errorf("said by somebody else: %v", err)
	}
}
