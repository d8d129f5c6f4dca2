package enginetest

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// RootFS writes the root file system of Env.Image as a tar stream. It needs a static busybox as /bin/busybox of
// this host (Debian's busybox-static).
func RootFS(ctx context.Context, w io.Writer) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("the test image needs busybox-static: %w", err)
	}
	applets, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return fmt.Errorf("list the applets of busybox: %w", err)
	}
	t := tar.NewWriter(w)
	for _, dir := range []string{"bin", "etc", "root", "usr", "usr/bin", "var"} {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		return err
	}
	for _, f := range []struct {
		tar.Header
		content string
	}{
		{tar.Header{Name: "bin/busybox", Mode: 0o755}, string(busybox)},
		{tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"},
		{tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nusers:x:1001:\nextra:x:1002:user\nvideo:x:44:\nnobody:x:65534:\n"},
		{tar.Header{Name: "etc/enginetest", Mode: 0o640, Uid: 1234, Gid: 1235}, "image\n"},
	} {
		f.Typeflag, f.Size = tar.TypeReg, int64(len(f.content))
		if err := t.WriteHeader(&f.Header); err != nil {
			return err
		}
		if _, err := io.WriteString(t, f.content); err != nil {
			return err
		}
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if a == "busybox" {
			continue
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	return t.Close()
}
