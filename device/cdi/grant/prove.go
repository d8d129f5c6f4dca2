package grant

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Container is what is compared with a Set.
type Container struct {
	// Root is the container's root directory, as its processes see it.
	Root *os.File
	// Others are device nodes that it was given beside those that were lent.
	Others []berth.Node
	// Bound: its /dev is a directory of the host's, which holds more.
	Bound bool
	// Kin: of nodes that are there beside, only those count that could be GPUs, by their major numbers.
	Kin bool
	// Optional says of a lent node that it may be missing; nil: none may.
	Optional func(path string) bool
}

// ErrDiffers says that a container does not hold what it was lent. It is an ErrConflict.
var ErrDiffers = fmt.Errorf("the container does not hold exactly what it was lent: %w", berth.ErrConflict)

func differs(what []string) error {
	if len(what) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrDiffers, strings.Join(what, "; "))
}

// ProveNodes compares the device nodes below a container's /dev with those that were lent: each is there with its
// number, and no others but those that every container has. ErrDiffers says in what they differ; any other error,
// that they could not be compared.
func (s *Set) ProveNodes(c Container) error {
	var what []string
	for i := range s.Nodes {
		n := &s.Nodes[i]
		st, err := lookUp(c.Root, path(n))
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			if c.Optional == nil || !c.Optional(path(n)) {
				what = append(what, fmt.Sprintf("%s (%s) is not there", path(n), number(n)))
			}
		case err != nil:
			return fmt.Errorf("compare the container's devices with what it was lent: %s: %w", path(n), err)
		case numberOf(st) != number(n):
			what = append(what, fmt.Sprintf("%s is %s, and not %s", path(n), numberOf(st), number(n)))
		}
	}
	if !c.Bound {
		more, err := s.beyond(c)
		if err != nil {
			return fmt.Errorf("compare the container's devices with what it was lent: %w", err)
		}
		what = append(what, more...)
	}
	return differs(what)
}

// lookUp is lstat(2) within a root.
func lookUp(root *os.File, name string) (*unix.Stat_t, error) {
	fd, err := open(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	return &st, unix.Fstat(fd, &st)
}

func open(root *os.File, name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // something was renamed meanwhile
			return fd, err
		}
	}
}

func numberOf(st *unix.Stat_t) string {
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return "no device node"
	}
	return fmt.Sprintf("%s %d:%d", kind, unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// beyond are the device nodes in /dev that were neither lent nor given, but those that every container has.
func (s *Set) beyond(c Container) (what []string, err error) {
	fd, err := open(c.Root, "/dev", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, n := range slices.Concat(everywhere(), s.Nodes, c.Others) {
		known[number(&n)] = true
	}
	left := maxEntries
	err = walk(fd, "/dev", &left, func(p string, st *unix.Stat_t) {
		n := numberOf(st)
		terminal := st.Mode&unix.S_IFMT == unix.S_IFCHR && isPts(unix.Major(st.Rdev))
		if !known[n] && !terminal && st.Mode&unix.S_IFMT != unix.S_IFDIR && (!c.Kin || s.isKin(st)) {
			what = append(what, fmt.Sprintf("%s (%s) is there, which was not lent", p, n))
		}
	})
	slices.Sort(what)
	return what, err
}

// isKin reports whether a node could be that of a GPU, by its major number.
func (s *Set) isKin(st *unix.Stat_t) bool {
	major := unix.Major(st.Rdev)
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && slices.Contains(gpuMajors, major) ||
		slices.ContainsFunc(s.Nodes, func(n berth.Node) bool {
			return n.Major == major && (n.Type == "b") == (st.Mode&unix.S_IFMT == unix.S_IFBLK)
		})
}

// maxEntries bounds how much of a container's /dev is looked through: where its command runs already, it may fill it.
const maxEntries = 1 << 14

// walk visits the device nodes below a directory, which it closes, but not what is mounted there. left is how many
// entries more it looks at.
func walk(fd int, at string, left *int, visit func(string, *unix.Stat_t)) error {
	dir := os.NewFile(uintptr(fd), at)
	defer func() { _ = dir.Close() }()
	var own unix.Stat_t
	if err := unix.Fstat(fd, &own); err != nil {
		return err
	}
	names, err := dir.Readdirnames(*left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if *left -= len(names); *left < 0 {
		return fmt.Errorf("%s: %w: /dev has more than %d entries", at, berth.ErrExhausted, maxEntries)
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			visit(at+"/"+name, &st)
		case unix.S_IFDIR:
			if st.Dev != own.Dev {
				continue
			}
			sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := walk(sub, at+"/"+name, left, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// everywhere are the device nodes that every container has, and may use.
func everywhere() []berth.Node {
	var all []berth.Node
	for _, d := range [][2]uint32{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		all = append(all, berth.Node{Type: "c", Major: d[0], Minor: d[1]})
	}
	return all
}

// isPts reports whether a major number is that of terminals.
func isPts(major uint32) bool { return major >= 136 && major <= 143 }

// ProveRules compares the device rules of a container, as cgroup v1 lists them, with what was lent: each node may
// be used, and none that was neither lent nor given. runtimes are the rules that an OCI runtime adds by itself.
func (s *Set) ProveRules(list []string, c Container, runtimes ...berth.Node) error {
	var what []string
	wanted := map[string]string{} // by number: access
	for _, n := range slices.Concat(s.Nodes, c.Others) {
		wanted[number(&n)] = merge(wanted[number(&n)], cmp.Or(n.Permissions, "rwm"))
	}
	allowed := map[string]string{"c *:*": "m", "b *:*": "m", "c 136:*": "rwm"}
	for _, n := range slices.Concat(everywhere(), runtimes) {
		allowed[number(&n)] = "rwm"
	}
	have := map[string]string{}
	for _, line := range list {
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			return fmt.Errorf("device rule %q of the container: %w: it is no rule", line, berth.ErrInvalid)
		}
		device, access := line[:i], line[i+1:]
		have[device] = merge(have[device], access)
		if beyond := Without(access, allowed[device]+wanted[device]); beyond != "" {
			what = append(what, fmt.Sprintf("its device rules allow %q, which was not lent", line))
		}
	}
	for device, access := range wanted {
		if missing := Without(access, have[device]); missing != "" {
			what = append(what, fmt.Sprintf("its device rules do not allow %q", device+" "+missing))
		}
	}
	slices.Sort(what)
	return differs(what)
}

// merge is the access of two rules together.
func merge(a, b string) string { return a + Without(b, a) }

// Without is the access in a that is not in b.
func Without(a, b string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(b, r) {
			return -1
		}
		return r
	}, a)
}
