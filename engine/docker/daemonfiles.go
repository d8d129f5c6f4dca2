package docker

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// daemonFiles are the files that the daemon itself binds into a sandbox's containers, /etc/hosts and its like: they lie beside the
// writable layers, whose sizes leave them out, and containers may write to them. They are known by the container's ID once it has
// started.
type daemonFiles struct {
	mu sync.Mutex
	of map[string][]string
}

// daemonFilesUsed is what the files hold that the daemon binds into containers, in bytes. 0 where they cannot be seen from here.
func (s *Sandbox) daemonFilesUsed(ctx context.Context, containers []container.Summary) (used int64, err error) {
	host, err := s.e.daemon(ctx)
	if err != nil || host.remote || os.Geteuid() != 0 {
		return 0, err
	}
	for _, c := range containers {
		files, err := s.daemonFiles(ctx, host, c)
		if err != nil {
			return 0, err
		}
		for _, f := range files {
			used += fileUsed(f)
		}
	}
	return used, nil
}

func (s *Sandbox) daemonFiles(ctx context.Context, host *hostInfo, c container.Summary) ([]string, error) {
	s.files.mu.Lock()
	files, known := s.files.of[c.ID]
	s.files.mu.Unlock()
	if known || c.State == container.StateCreated {
		return files, nil
	}
	ctx, cancel := s.e.call(ctx)
	defer cancel()
	res, err := s.e.api().ContainerInspect(ctx, c.ID, client.ContainerInspectOptions{})
	if is(err, berth.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, wrap(ctx, "files of containers", err)
	}
	said := []string{res.Container.HostsPath, res.Container.HostnamePath, res.Container.ResolvConfPath}
	if hosts := res.Container.HostsPath; host.podman && hosts != "" {
		said = append(said, filepath.Join(filepath.Dir(hosts), ".containerenv")) // of which it says nothing
	}
	for _, f := range said {
		if strings.Contains(f, "/"+c.ID+"/") { // else a file that somebody has mounted
			files = append(files, f)
		}
	}
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	if s.files.of == nil {
		s.files.of = map[string][]string{}
	}
	s.files.of[c.ID] = files
	return files, nil
}

// fileUsed is what a file holds, in bytes; 0 of what is none.
func fileUsed(name string) int64 {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0
	}
	return st.Blocks * 512
}
