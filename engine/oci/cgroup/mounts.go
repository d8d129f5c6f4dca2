package cgroup

import (
	"bufio"
	"bytes"
	"path"
	"slices"
	"strings"
)

// Version is the layout of cgroups on a host.
type Version string

// The layouts.
const (
	V1     Version = "v1"     // v1 hierarchies only
	Hybrid Version = "hybrid" // v1 hierarchies hold the controllers; a v2 hierarchy is mounted beside them
	V2     Version = "v2"     // the unified hierarchy alone
	None   Version = "none"   // nothing is mounted
)

// hierarchy is one mounted tree of cgroups.
type hierarchy struct {
	mount       string   // directory
	v2          bool     //
	controllers []string // v1: those that share the hierarchy, or "name=…"
	root        string   // the cgroup that is mounted
	own         string   // this process's cgroup below mount; "/" where it lies outside what is mounted
}

func (h *hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// parseMounts finds the cgroup hierarchies in a mountinfo file (proc(5)) and this process's place in each
// from a /proc/PID/cgroup file. Of a hierarchy that is mounted more than once, the last mount on a
// directory counts, and of several directories the first.
func parseMounts(mountinfo, cgroups []byte) []hierarchy {
	places := parseOwn(cgroups)
	var all []hierarchy
	scan := bufio.NewScanner(bytes.NewReader(mountinfo))
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		before, after, ok := strings.Cut(scan.Text(), " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if !ok || len(b) < 6 || len(a) < 1 {
			continue
		}
		m := hierarchy{root: unescape(b[3]), mount: unescape(b[4])}
		// Whatever is mounted later on the same directory hides what was there.
		all = slices.DeleteFunc(all, func(o hierarchy) bool {
			return o.mount == m.mount || strings.HasPrefix(o.mount, m.mount+"/")
		})
		switch {
		case a[0] == "cgroup2":
			m.v2 = true
		case a[0] == "cgroup" && len(a) >= 3:
			m.controllers = v1Controllers(a[2], places)
		default:
			continue
		}
		all = append(all, m)
	}
	var found []hierarchy
	for _, m := range all {
		if slices.ContainsFunc(found, func(h hierarchy) bool {
			return h.v2 == m.v2 && slices.Equal(h.controllers, m.controllers)
		}) {
			continue
		}
		m.own = below(places[placeKey(&m)], m.root)
		found = append(found, m)
	}
	return found
}

// v1Controllers takes the controllers out of the options of a v1 mount: those that this process is in a cgroup of. Security
// modules have options of their own there.
func v1Controllers(options string, places map[string]string) []string {
	var cs []string
	for o := range strings.SplitSeq(options, ",") {
		switch {
		case len(places) > 0 && !known(o, places):
		case o == "rw", o == "ro", o == "none", o == "xattr", o == "clone_children", o == "noprefix",
			strings.HasPrefix(o, "release_agent="), strings.HasPrefix(o, "cpuset_"), strings.HasPrefix(o, "favordynmods"):
		default:
			cs = append(cs, o)
		}
	}
	slices.Sort(cs)
	return cs
}

// known reports whether a controller is among those of the keys.
func known(controller string, places map[string]string) bool {
	for key := range places {
		for c := range strings.SplitSeq(key, ",") {
			if c == controller {
				return true
			}
		}
	}
	return false
}

// parseOwn reads a /proc/PID/cgroup file: hierarchy key to path.
func parseOwn(cgroups []byte) map[string]string {
	places := map[string]string{}
	for line := range strings.Lines(string(cgroups)) {
		id, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		cs, p, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 {
			continue
		}
		if id == "0" && cs == "" {
			places["v2"] = p
			continue
		}
		list := strings.Split(cs, ",")
		slices.Sort(list)
		places[strings.Join(list, ",")] = p
	}
	return places
}

func placeKey(h *hierarchy) string {
	if h.v2 {
		return "v2"
	}
	return strings.Join(h.controllers, ",")
}

// below is where a cgroup lies beneath the root that is mounted: in a container without a cgroup namespace
// both are the container's own cgroup. A cgroup outside (a path of "/../…") is taken for "/".
func below(own, root string) string {
	if root == "/" && !strings.HasPrefix(own, "/..") {
		return path.Clean("/" + own)
	}
	if rest, ok := strings.CutPrefix(own, root); ok && (rest == "" || rest[0] == '/') {
		return path.Clean("/" + rest)
	}
	return "/"
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) bool {
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7'
}
