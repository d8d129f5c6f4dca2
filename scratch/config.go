package scratch

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// leastMain is the least that sized volumes must leave of Limit to be set aside from it, in bytes.
const leastMain = 16 << 20

func (c Config) check(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("open scratch space: %w: %q is no absolute path", berth.ErrInvalid, dir)
	}
	if c.Limit < 0 {
		return fmt.Errorf("open scratch space: %w: a limit of %d bytes", berth.ErrInvalid, c.Limit)
	}
	for _, way := range c.Prefer {
		if way != berth.DiskQuota && way != berth.DiskLoop && way != berth.DiskSampled {
			return fmt.Errorf("open scratch space: %w: no way to keep a disk limit is called %q", berth.ErrInvalid, way)
		}
	}
	seen := map[string]bool{}
	for _, v := range c.Volumes {
		switch {
		case !validName(v.Name):
			return fmt.Errorf("open scratch space: %w: %q cannot name a volume", berth.ErrInvalid, v.Name)
		case seen[v.Name]:
			return fmt.Errorf("open scratch space: %w: two volumes %s", berth.ErrInvalid, v.Name)
		case v.Size < 0:
			return fmt.Errorf("open scratch space: %w: volume %s of %d bytes", berth.ErrInvalid, v.Name, v.Size)
		}
		seen[v.Name] = true
	}
	return nil
}

// split says which parts the area has, each with a limit of its own; none where there is no limit at all.
//
// A file or directory can count against one hard limit only. So a sized volume's space is set aside from
// Limit: together they never hold more than Limit. A volume as large as Limit needs no limit of its own.
// Where the sizes leave nothing for the rest, each is kept by itself, and only the sum is sampled.
func (c Config) split() (parts []part, sampleTotal bool) {
	main := part{Name: mainName, Size: c.Limit}
	var aside int64
	for _, v := range c.Volumes {
		if v.Size == 0 || c.Limit > 0 && v.Size >= c.Limit {
			continue
		}
		parts = append(parts, part{Name: volumePrefix + v.Name, Size: v.Size})
		aside += v.Size
	}
	if c.Limit > 0 && aside > 0 {
		if c.Limit-aside >= leastMain {
			main.Size -= aside
		} else {
			sampleTotal = true
		}
	}
	if c.Limit == 0 && len(parts) == 0 {
		return nil, false
	}
	return append([]part{main}, parts...), sampleTotal
}

// checkRoom refuses what could never fit.
func checkRoom(dir string, c Config) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("scratch space at %s: %w", dir, kindOf(err))
	}
	total := int64(st.Blocks) * st.Bsize
	if total == 0 {
		return nil
	}
	if c.Limit > total {
		return tooMuch(dir, c.Limit, total)
	}
	for _, v := range c.Volumes {
		if c.Limit == 0 && v.Size > total {
			return tooMuch(dir, v.Size, total)
		}
	}
	return nil
}

func tooMuch(dir string, want, total int64) error {
	return &fault{
		text: fmt.Sprintf("%s of disk were asked for, and the file system of %s has %s in all", inWords(want), dir, inWords(total)),
		kind: berth.ErrExhausted,
	}
}

// weaker is the weaker of two ways.
func weaker(a, b berth.DiskEnforcement) berth.DiskEnforcement {
	rank := map[berth.DiskEnforcement]int{
		berth.DiskNone: 0, berth.DiskQuota: 1, berth.DiskLoop: 2, berth.DiskSampled: 3,
	}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// VolumeName names the i-th volume of a task, so that people see which it is.
func VolumeName(i int, path string) string {
	clean := strings.Map(func(r rune) rune {
		if validName(string(r)) || r == '.' {
			return r
		}
		return '_'
	}, strings.Trim(path, "/"))
	return fmt.Sprintf("v%d-%s", i, clean[:min(len(clean), 60)])
}

func validName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 200 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
