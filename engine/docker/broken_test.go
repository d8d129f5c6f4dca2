package docker

import (
	"errors"
	"testing"
)

func TestBroken(t *testing.T) {
	for _, row := range []struct {
		err              string
		broken, answered bool
	}{
		{"docker info: unavailable: Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker daemon running?", true, false},
		{"failed to connect to the docker API at unix:///x; check if the path is correct", true, false},
		{`start s1: daemon: OCI runtime create failed: container_linux.go:380: starting container process caused: process_linux.go:545: container init caused: rootfs_linux.go:76: mounting "/sys/fs/cgroup" to rootfs at "/sys/fs/cgroup" caused: no such file or directory: unknown`, true, true},
		{"oci runtime error: container_linux.go:247: starting container process caused \"process_linux.go:359: container init caused \\\"rootfs_linux.go:54: mounting \\\"/a\\\" to rootfs \\\"/b\\\" caused: no such file or directory\\\"\"", true, true},
		{"create: grpc: the connection is unavailable", true, true},
		{"pull x: daemon: write /var/lib/docker/tmp/GetImageBlob1: no space left on device", true, true},
		{"the daemon did not answer within 2m0s: unavailable", false, false}, // what it was asked for may have begun
		{"error during connect: Post \"http://x/start\": EOF", false, false},
		{`exec: "none": executable file not found in $PATH: unknown`, false, false},
		{"image localhost/x: not found", false, false},
		{"bind source path does not exist: /x", false, false},
		{"permission denied while trying to connect to the docker API at unix:///run/docker.sock", false, false},
	} {
		if b, a := (*Engine)(nil).Broken(errors.New(row.err)); b != row.broken || a != row.answered {
			t.Errorf("%s: broken %v, answered %v", row.err, b, a)
		}
	}
}
