package oci

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/groups"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// identity is a user as the image knows it.
type identity struct {
	specs.User
	Home string
}

// identities remembers who users of images are: an image's files never change. The zero value works.
type identities struct {
	mu sync.Mutex
	m  map[string]identity
}

// maxIdentities bounds what many images make us hold.
const maxIdentities = 64

// user resolves "name|uid[:group|gid]" and further groups by the image's passwd and group files, as Docker
// does: names must be there, numbers need not be.
func (e *Engine) user(imageID, spec string, groups []string) (identity, error) {
	key := strings.Join(append([]string{imageID, spec}, groups...), "\x00")
	e.users.mu.Lock()
	id, ok := e.users.m[key]
	e.users.mu.Unlock()
	if !ok {
		var err error
		if id, err = e.findUser(imageID, spec, groups); err != nil {
			return identity{}, err
		}
		e.users.mu.Lock()
		if e.users.m == nil || len(e.users.m) >= maxIdentities {
			e.users.m = map[string]identity{}
		}
		e.users.m[key] = id
		e.users.mu.Unlock()
	}
	id.AdditionalGids = slices.Clone(id.AdditionalGids) // the caller's
	return id, nil
}

func (e *Engine) findUser(imageID, spec string, groups []string) (identity, error) {
	passwd, err := e.lookup(imageID, "/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := e.lookup(imageID, "/etc/group")
	if err != nil {
		return identity{}, err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return identity{}, fmt.Errorf("user %q: %w in the image: %w", spec, berth.ErrInvalid, err)
	}
	if err := mapped(u.Uid, u.Gid); err != nil {
		return identity{}, fmt.Errorf("user %q: %w", spec, err)
	}
	id := identity{User: specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}, Home: u.Home}
	more, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
	if err != nil {
		return identity{}, fmt.Errorf("group-add: %w: %w", berth.ErrInvalid, err)
	}
	if setgroupsDenied() {
		if len(more) > 0 {
			return identity{}, fmt.Errorf("group-add: %w: this user namespace has one group alone; map subordinate ids with newuidmap and newgidmap (package uidmap, /etc/subgid)", berth.ErrUnsupported)
		}
		return id, nil // as OCI runtimes have it: what only the image says is left out
	}
	seen := map[uint32]bool{}
	for _, g := range append(append([]int{u.Gid}, u.Sgids...), more...) {
		if gid := uint32(g); !seen[gid] {
			seen[gid] = true
			id.AdditionalGids = append(id.AdditionalGids, gid)
		}
	}
	return id, nil
}

// mapped refuses ids that this user namespace does not have.
func mapped(uid, gid int) error {
	for _, m := range []struct {
		have func() []user.IDMap
		what string
		id   int
	}{{ownUIDs, "user", uid}, {ownGIDs, "group", gid}} {
		ids := m.have()
		if len(ids) == 0 {
			continue // a kernel without user namespaces
		}
		if !slices.ContainsFunc(ids, func(r user.IDMap) bool { return int64(m.id) >= r.ID && int64(m.id)-r.ID < r.Count }) {
			return fmt.Errorf("%w: the %s %d is not mapped in this user namespace; as root: apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER", berth.ErrUnsupported, m.what, m.id)
		}
	}
	return nil
}

// What a process of many threads has for its life: only one of a single thread can enter another user namespace
// (setns(2)), and the maps of one can be written once (user_namespaces(7)).
var (
	ownUIDs = sync.OnceValue(func() []user.IDMap { return idMap("/proc/self/uid_map") })
	ownGIDs = sync.OnceValue(func() []user.IDMap { return idMap("/proc/self/gid_map") })
	// setgroupsDenied reports whether this user namespace lets nobody set supplementary groups.
	setgroupsDenied = sync.OnceValue(groups.Fixed)
)

func idMap(file string) []user.IDMap {
	ids, err := user.ParseIDMapFile(file)
	if err != nil {
		return nil
	}
	return ids
}

// lookup reads a file of the image; one that is not there is empty.
func (e *Engine) lookup(imageID, path string) ([]byte, error) {
	raw, err := e.images.Lookup(imageID, path)
	if errors.Is(err, berth.ErrNotFound) {
		return nil, nil
	}
	return raw, err
}
