package userns

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/user"

	"github.com/berth-project/berth"
)

// Range is a part of an id map: Count ids from Inside in the namespace on are those from Outside on.
type Range struct{ Inside, Outside, Count int64 }

// Ranges are the maps that this user's namespaces get: root is the user, and the ids after it are those that
// /etc/subuid and /etc/subgid give the user. Where there are none, or no newuidmap, why says so, and root is all.
func Ranges() (uids, gids []Range, why string) {
	uids, gids = []Range{{0, int64(os.Getuid()), 1}}, []Range{{0, int64(os.Getgid()), 1}}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return uids, gids, tool + " is not there: install uidmap"
		}
	}
	moreUIDs, err := user.CurrentUserSubUIDs()
	if err != nil || len(moreUIDs) == 0 {
		return uids, gids, reason(err, "/etc/subuid")
	}
	moreGIDs, err := user.CurrentUserSubGIDs()
	if err != nil || len(moreGIDs) == 0 {
		return uids, gids, reason(err, "/etc/subgid")
	}
	return appendRanges(uids, moreUIDs), appendRanges(gids, moreGIDs), ""
}

func reason(err error, file string) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return file + " is not there"
	case err != nil:
		return err.Error()
	}
	return file + " has no line for this user: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
}

func appendRanges(to []Range, more []user.SubID) []Range {
	next := int64(1)
	for _, m := range more {
		if m.Count > 0 {
			to = append(to, Range{next, m.SubID, m.Count})
			next += m.Count
		}
	}
	return to
}

// mapIDs maps the ids of the process pid, which has made a user namespace.
func mapIDs(pid string) error {
	uids, gids, why := Ranges()
	if why == "" {
		err := runTool("newuidmap", pid, uids)
		if err == nil {
			err = runTool("newgidmap", pid, gids)
		}
		return err
	}
	// What anybody may do: one id, and no way to drop a group that is there to be denied something.
	for _, f := range []struct{ name, text string }{
		{"setgroups", "deny"}, {"uid_map", line(uids[0])}, {"gid_map", line(gids[0])},
	} {
		if err := os.WriteFile(filepath.Join("/proc", pid, f.name), []byte(f.text), 0); err != nil {
			return fmt.Errorf("user namespaces: %w: map your id: %w", berth.ErrDenied, err)
		}
	}
	return nil
}

func line(r Range) string { return fmt.Sprintf("%d %d %d\n", r.Inside, r.Outside, r.Count) }

func runTool(tool, pid string, ranges []Range) error {
	args := []string{pid}
	for _, r := range ranges {
		args = append(args, strconv.FormatInt(r.Inside, 10), strconv.FormatInt(r.Outside, 10), strconv.FormatInt(r.Count, 10))
	}
	var said bytes.Buffer
	cmd := exec.Command(tool, args...) //nolint:gosec,noctx // numbers only; the tool does not block
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		text := bytes.TrimSpace(said.Bytes())
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			text = text[:i]
		}
		return fmt.Errorf("user namespaces: %w: %s: %w: %s; are /etc/subuid and /etc/subgid right, and is %s setuid root?", berth.ErrDenied, tool, err, text, tool)
	}
	return nil
}
