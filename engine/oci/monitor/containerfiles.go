package monitor

import (
	"os"
	"path/filepath"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/logfile"
	"github.com/berth-project/berth/scratch"
)

// discard removes what a failed launch left.
func (c *container) discard() {
	for _, w := range c.logs {
		w.Cut()
	}
	c.pumps.Wait()
	for _, w := range c.logs {
		w.Abandon() // what was not pumped
	}
	c.release()
	for _, stream := range []string{"stdout", "stderr"} {
		if c.logs[stream] != nil && c.step.LogDir != "" {
			_ = os.Remove(filepath.Join(c.step.LogDir, stream))
		}
	}
	if c.made {
		c.removeFiles()
	}
}

func (c *container) removeFiles() {
	dirs := []string{c.upper(), c.work(), c.dir}
	if c.step.LogDir == "" {
		for _, stream := range []string{"stdout", "stderr"} {
			dirs = append(dirs, logfile.Files(c.logDir(), c.logName(stream))...)
		}
	}
	for i := range c.step.Image.Config.Volumes {
		dirs = append(dirs, c.imageVolume(i))
	}
	for _, dir := range dirs {
		if err := scratch.Remove(dir); err != nil {
			c.sb.m.log.Error("remove container", "container", c.id, "err", err)
		}
	}
}

// remount mounts the root of an ended container again, read-only.
func (c *container) remount() (*os.File, error) {
	layers := append([]string{c.upper()}, c.layers...)
	return rootfs.Overlay(bundle.Root{Layers: layers, UserXattr: c.sb.m.rootless})
}

// pooled reports whether the container's cgroup is one of the pool's.
func (c *container) pooled() bool { return c.runtime == runtimeDirect }

func (c *container) upper() string { return filepath.Join(c.sb.area.Dir(), "upper-"+c.id) }
func (c *container) work() string  { return filepath.Join(c.sb.area.Dir(), "work-"+c.id) }
