package hook

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// Inside runs hooks in the calling process, which must have the rights of the program: to execute a program takes
// longer than what most hooks do. What they need of the container is open.
type Inside struct {
	// Root is the container's root directory; a walk from it crosses into the container's mounts.
	Root *os.File
	Env  []string // the container's
	Log  io.Writer
	// Kept is for several containers. Key names all that a container's files depend on before its hooks run: its
	// image and what is mounted in it, a file with its state, of a directory only where; "" is unknown.
	Kept *Kept
	Key  string

	ran     int  // hooks so far
	strayed bool // one of them has looked at what Key does not tell: see inroot.Root.Strayed
}

// ErrTooMuch says that the container has so much of what a hook looks through that a long-lived process should leave
// it to the program.
var ErrTooMuch = errors.New("too much for this process")

// overParams is the hook that mounts something, which Inside leaves to who makes the container's other mounts.
const overParams = "disable-device-node-modification"

// Known says whether the arguments of the program, without its name, name hooks that Inside has.
func Known(args []string) bool {
	for _, one := range split(args) {
		if len(one) == 0 || commands[one[0]] == nil {
			return false
		}
	}
	return true
}

// MountsOver says whether one of the hooks wants a file mounted over the driver's parameters, and Params what it is.
func MountsOver(args []string) bool {
	return slices.ContainsFunc(split(args), func(one []string) bool { return len(one) == 1 && one[0] == overParams })
}

// Params is the file whose contents are to be mounted over, and the contents; false where there is no need.
func Params() (name string, contents []byte, ok bool, err error) {
	params, err := os.ReadFile(driverParams)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, false, nil // no such driver
	} else if err != nil {
		return "", nil, false, err
	}
	contents, ok = WithoutNodeModification(params)
	return driverParams, contents, ok, nil
}

// Into are directories into which the hooks that the arguments name will put something, as far as the arguments say so.
func Into(args []string) (dirs []string) {
	add := func(dir string) {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	for _, one := range split(args) {
		switch {
		case len(one) == 0:
		case one[0] == "update-ldcache", one[0] == "update-application-profile":
			add("/etc")
		case one[0] == "create-symlinks":
			for _, arg := range one[1:] {
				if _, link, ok := strings.Cut(arg, "::"); ok {
					add(path.Dir(link))
				}
			}
		}
	}
	return dirs
}

func split(args []string) (all [][]string) {
	for {
		n := slices.Index(args, andThen)
		if n < 0 {
			return append(all, args)
		}
		all, args = append(all, args[:n]), args[n+1:]
	}
}

// Run runs the hooks that the arguments of the program, without its name, name; until one fails, or ctx ends, whose
// cause is in the error then. All runs for a container are of one Inside, in their order. ErrTooMuch: what was
// done so far may be done again by the program.
func (in *Inside) Run(ctx context.Context, args []string) (err error) {
	root, err := inroot.At(in.Root)
	if err != nil {
		return fmt.Errorf("the container's root: %w", err)
	}
	defer root.Close()
	root.KeepToMount("/dev")
	root.Alone() // the container waits
	if in.Key != "" {
		root.Watch()
	}
	defer func() { in.strayed = in.strayed || root.Strayed() }()
	for _, one := range split(args) {
		if err := in.one(ctx, root, one); err != nil {
			return err
		}
	}
	return nil
}

func (in *Inside) one(ctx context.Context, root *inroot.Root, args []string) (err error) {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return fmt.Errorf("there is no hook %q", args)
	}
	name := args[0]
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	run := commands[name](flags)
	if err := flags.Parse(args[1:]); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s: unexpected argument %q", name, flags.Arg(0))
	}
	if name == overParams {
		return nil
	}
	j := &job{
		root: root, env: func() ([]string, error) { return in.Env, nil }, log: in.Log, most: ofInside,
		ended: func() error { return context.Cause(ctx) },
	}
	if in.ran++; in.Key != "" && !in.strayed {
		// Each hook finds what those before it have made.
		j.kept, j.key = in.Kept, fmt.Sprintf("%s %d", in.Key, in.ran)
	}
	defer func() {
		// Who made the image must not end a process that has other containers.
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %v", name, r)
		}
	}()
	switch err := run(j); {
	case j.large:
		return fmt.Errorf("%s: %w", name, ErrTooMuch)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
