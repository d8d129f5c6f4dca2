package hook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountsOfTheHost has links of an image lead the hooks into a directory of the host that is mounted into the
// container: they say so, and nothing is changed there.
func TestMountsOfTheHost(t *testing.T) {
	for name, args := range map[string][]string{
		"link":         {"create-symlinks", "--link", "x::/usr/lib/libx.so"},
		"deep link":    {"create-symlinks", "--link", "x::/usr/lib/a/b/libx.so"},
		"cache":        {"update-ldcache", "--folder", "/driver"},
		"profile":      {"update-application-profile"},
		"mode":         {"chmod", "--mode", "700", "--path", "/usr/lib/victim"},
		"mount itself": {"create-symlinks", "--link", "x::/data/libx.so"},
		"link at /dev": {"create-symlinks", "--link", "x::/dev/x"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, map[string]string{"data/x": "", "etc": "-> data", "usr/lib": "-> ../data"})
			c.library("driver/libx.so.1")
			before, err := os.Stat(filepath.Join(c.outside, "victim"))
			if err != nil {
				t.Fatal(err)
			}
			inMountNamespace(t, func() error {
				if err := bind(c.outside, filepath.Join(c.root, "data")); err != nil {
					return err
				}
				if name == "link at /dev" {
					if err := os.Symlink("data", filepath.Join(c.root, "dev")); err != nil {
						return err
					}
				} else if err := mountDev(c); err != nil {
					return err
				}
				warns := args[0] == "chmod" || args[0] == "update-application-profile"
				if code, out := c.run(args...); (code == 0) != warns || !strings.Contains(out, c.root+"/data") || !strings.Contains(out, "which may be the host's") {
					return fmt.Errorf("exit code %d, %s", code, out)
				}
				return nil
			})
			if after, err := os.Stat(filepath.Join(c.outside, "victim")); err != nil || after.Mode() != before.Mode() {
				t.Error(after.Mode(), err)
			}
		})
	}
}

// mountDev gives the container a /dev of its own with a GPU.
func mountDev(c *container) error {
	dev := filepath.Join(c.root, "dev")
	return errors.Join(os.MkdirAll(dev, 0o755), unix.Mount("tmpfs", dev, "tmpfs", 0, "mode=755"), unix.Mknod(filepath.Join(dev, "nvidia0"), unix.S_IFCHR|0o666, int(unix.Mkdev(195, 0))))
}

func bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND, "") }

// TestOwnDev makes links in the /dev that a runtime mounts, and not in the host's, nor in what is mounted below.
func TestOwnDev(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/x": ""})
	inMountNamespace(t, func() error {
		if err := mountDev(c); err != nil {
			return err
		}
		c.must("create-symlinks", "--link", "../card1::/dev/dri/by-path/pci-1", "--link", "y::/etc/y")
		c.must("chmod", "--mode", "755", "--path", "/dev/dri")
		if err := errors.Join(os.Mkdir(filepath.Join(c.root, "dev/data"), 0o755), bind(c.outside, filepath.Join(c.root, "dev/data"))); err != nil {
			return err
		}
		if code, out := c.run("create-symlinks", "--link", "x::/dev/data/x"); code != 1 || !strings.Contains(out, "/dev/data: it lies in another file system") {
			return fmt.Errorf("below /dev: %d, %s", code, out)
		}
		if err := bind("/dev", filepath.Join(c.root, "dev")); err != nil {
			return err
		}
		if code, out := c.run("create-symlinks", "--link", "x::/dev/berth-test-x"); code != 1 || !strings.Contains(out, "/dev: it lies in another file system") {
			return fmt.Errorf("the host's /dev: %d, %s", code, out)
		}
		return nil
	})
	if got, err := os.Readlink(filepath.Join(c.root, "etc/y")); got != "y" {
		t.Error(got, err)
	}
	if _, err := os.Lstat("/dev/berth-test-x"); err == nil {
		_ = os.Remove("/dev/berth-test-x")
		t.Error("a link was made in the host's /dev")
	}
}
