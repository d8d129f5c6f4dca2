package cdi

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// StaleError says that a spec no longer describes the host. It is an ErrConflict.
type StaleError struct {
	File   string
	Own    bool     // berth wrote the file and can write it anew
	Causes []string // what differs
	Fix    string   // what to do
}

func (e *StaleError) Error() string {
	causes := e.Causes
	more := ""
	if n := len(causes) - 3; n > 0 {
		causes, more = causes[:3], fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("CDI spec %s is stale: %s%s; %s", e.File, strings.Join(causes, "; "), more, e.Fix)
}

// Unwrap makes it an ErrConflict.
func (e *StaleError) Unwrap() error { return berth.ErrConflict }

// Check compares all that injecting the named devices would bring into a container with the host: the numbers of
// device nodes, files to be mounted, hooks, and the NVIDIA driver's version. The error is a StaleError for the
// first spec that does not fit, or says that a name is not known.
func (c *Cache) Check(names ...string) error {
	devices, _, err := c.find(names)
	if err != nil {
		return err
	}
	var order []*Spec
	edits := map[*Spec]*Edits{}
	for _, d := range devices {
		if edits[d.Spec] == nil {
			order = append(order, d.Spec)
			edits[d.Spec] = Append(nil, &d.Spec.doc.ContainerEdits)
		}
		Append(edits[d.Spec], d.edits())
	}
	for _, s := range order {
		causes, err := Differences(c.host, edits[s])
		if err != nil {
			return err
		}
		if len(causes) > 0 {
			return &StaleError{File: s.Path, Own: s.Own, Causes: causes, Fix: fix(s)}
		}
	}
	return nil
}

func fix(s *Spec) string {
	switch {
	case s.Own:
		return "write it anew: berth cdi generate --vendor " + strings.TrimSuffix(s.Vendor, ".com") + " --output " + s.Path
	case s.Vendor == "nvidia.com":
		return "write it anew: nvidia-ctk cdi generate --output=" + s.Path
	case s.Vendor == "amd.com":
		return "write it anew: amd-ctk cdi generate --output=" + s.Path
	default:
		return "have the program of " + s.Vendor + " that wrote it write it anew, or remove it"
	}
}

// Differences says in what edits do not fit the host; nothing if they do. An error means that it could not be
// found out.
func Differences(host Host, e *Edits) ([]string, error) { return Compare(host, e, nil) }

// Compare is Differences, and tells found of each file and directory of the host that is there to be mounted; nil is not told.
func Compare(host Host, e *Edits, found func(m *specs.Mount, dir bool)) ([]string, error) {
	root, err := host.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	c := checker{host: host, root: root, found: found}
	for _, d := range e.DeviceNodes {
		c.node(d)
	}
	for _, m := range e.Mounts {
		c.mount(m)
	}
	for _, h := range e.Hooks {
		c.hook(h)
	}
	c.driver(e)
	return c.causes, c.err
}

type checker struct {
	host   Host
	root   *inroot.Root
	found  func(m *specs.Mount, dir bool)
	causes []string
	err    error
}

func (c *checker) differs(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(c.causes, text) {
		c.causes = append(c.causes, text)
	}
}

func (c *checker) fail(err error) {
	if c.err == nil {
		c.err = fmt.Errorf("compare a CDI spec with this host: %w", err)
	}
}

func (c *checker) node(d *specs.DeviceNode) {
	p := cmp.Or(d.HostPath, d.Path)
	n, err := c.host.node(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.missing(p, d)
	case err != nil:
		c.fail(err)
	case n.Type == "":
		c.differs("%s is no device node on this host", p)
	case d.Type != "" && d.Type != n.Type && (d.Type != "u" || n.Type != "c"):
		c.differs("%s is of type %s there and of type %s on this host", p, d.Type, n.Type)
	case n.Type != "p" && d.Major != 0 && (d.Major != n.Major || d.Minor != n.Minor):
		c.differs("%s is %s there and %s on this host", p, number(d.Major, d.Minor), number(n.Major, n.Minor))
	}
}

// missing judges a node that is not on the host. The standard allows that where the spec fixes its numbers (the
// nodes of MIG slices are often made on demand); but then a driver must have the number.
func (c *checker) missing(p string, d *specs.DeviceNode) {
	if d.Type == "p" {
		return
	}
	if !isFixed(d) {
		c.differs("%s is not on this host", p)
		return
	}
	majors, err := c.majors(d.Type)
	if err != nil {
		c.fail(err)
	} else if !majors[d.Major] {
		c.differs("%s is %s there, which no driver of this host has, and is not on this host", p, number(d.Major, d.Minor))
	}
}

// majors are the numbers of the drivers in /proc/devices.
func (c *checker) majors(kind string) (map[int64]bool, error) {
	data, err := c.root.ReadFile("/proc/devices", 1<<20)
	if err != nil {
		return nil, err
	}
	section := map[bool]string{true: "Block devices:", false: "Character devices:"}[kind == "b"]
	majors, in := map[int64]bool{}, false
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if strings.HasSuffix(line, ":") {
			in = line == section
			continue
		}
		first, _, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(first, 10, 64); err == nil && in {
			majors[n] = true
		}
	}
	return majors, nil
}

func (c *checker) mount(m *specs.Mount) {
	if !isBind(m) {
		return
	}
	switch there, dir, err := c.host.exists(c.root, m.HostPath); {
	case err != nil:
		c.fail(err)
	case !there:
		c.differs("%s, which it mounts, is not on this host", m.HostPath)
	case c.found != nil:
		c.found(m, dir)
	}
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") ||
		m.Type == "" && strings.HasPrefix(m.HostPath, "/")
}

func (c *checker) hook(h *specs.Hook) {
	if !path.IsAbs(h.Path) {
		c.differs("its %s hook %q is not an absolute path", h.HookName, h.Path)
		return
	}
	st, err := c.root.Stat(h.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.differs("its hook %s is not on this host", h.Path)
	case err != nil:
		c.fail(err)
	case st.Mode&0o111 == 0:
		c.differs("its hook %s cannot be executed", h.Path)
	}
}

var (
	// driverLibrary are the libraries of which there is one, of the very version of the kernel's driver. Other
	// libraries have versions of their own.
	driverLibrary = regexp.MustCompile(`^(?:libcuda|libnvidia-ml|libnvidia-ptxjitcompiler)\.so\.(\d+\.\d+(?:\.\d+)?)$`)
	driverVersion = regexp.MustCompile(`(?m)^NVRM version:.*?\s(\d{2,}\.\d+(?:\.\d+)?)\s`)
	hostDriverArg = regexp.MustCompile(`^--host-driver-version(?:=(.*))?$`)
)

// driver compares the version of the NVIDIA driver for which the edits were written with the running one.
func (c *checker) driver(e *Edits) {
	wanted := map[string]string{} // version: where it stands
	for _, m := range e.Mounts {
		if v := driverLibrary.FindStringSubmatch(filepath.Base(m.HostPath)); v != nil {
			wanted[v[1]] = m.HostPath
		}
	}
	for _, h := range e.Hooks {
		for i, a := range h.Args {
			v := hostDriverArg.FindStringSubmatch(a)
			if v == nil {
				continue
			}
			if !strings.Contains(a, "=") && i+1 < len(h.Args) {
				v[1] = h.Args[i+1]
			}
			if v[1] != "" && wanted[v[1]] == "" {
				wanted[v[1]] = "hook " + a
			}
		}
	}
	if len(wanted) == 0 {
		return
	}
	data, err := c.root.ReadFile("/proc/driver/nvidia/version", 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return // WSL and Tegra have no such file; the nodes and libraries were compared
	} else if err != nil {
		c.fail(err)
		return
	}
	v := driverVersion.FindSubmatch(data)
	if v == nil {
		return
	}
	for have, where := range wanted {
		if have != string(v[1]) {
			c.differs("it is for the NVIDIA driver %s (%s), and %s runs", have, where, v[1])
		}
	}
}
