package hook

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"strings"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// createSymlinks makes the links that --link TARGET::LINK asks for.
func createSymlinks(flags *flag.FlagSet) func(*job) error {
	var links list
	flags.Var(&links, "link", "TARGET::LINK: a link to make; may be given again")
	return func(j *job) error {
		for _, l := range links {
			target, link, ok := strings.Cut(l, "::")
			if !ok || target == "" || link == "" || strings.Contains(link, "::") {
				return fmt.Errorf("--link %q is not TARGET::LINK", l)
			}
			if err := CreateSymlink(j.root, target, link); err != nil {
				return err
			}
		}
		return nil
	}
}

// CreateSymlink makes link, which a process in the root sees, point to target, in place of what is there. It
// makes the directories above. The target is not looked at: it may come later, or never.
func CreateSymlink(root *inroot.Root, target, link string) error {
	if have, err := root.Readlink(link); err == nil && have == target {
		return nil
	}
	if err := root.Symlink(target, link); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make the link %s: a directory is there", link)
		}
		return fmt.Errorf("make the link %s: %w", link, err)
	}
	return nil
}
