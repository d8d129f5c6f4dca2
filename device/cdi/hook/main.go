package hook

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// job is one run of a hook: the container's root, and where to say what is odd but no error.
type job struct {
	root *inroot.Root
	env  func() ([]string, error) // the container's environment
	log  io.Writer
	most bounds
	kept *Kept
	key  string // of kept; "" keeps nothing

	ended func() error // says why the job is to end at once; nil never does

	entries int  // of directories, listed so far
	texts   int  // bytes of names that were found so far
	large   bool // a bound was reached where all is to be left to the program
}

func (j *job) tooMuch(yes bool) { j.large = j.large || yes && j.most.leaves }

// end is why the job is to end at once; nil if it is not.
func (j *job) end() error {
	if j.ended == nil {
		return nil
	}
	return j.ended()
}

// stopped says that nothing more is to be looked for.
func (j *job) stopped() bool { return j.large || j.end() != nil }

func (j *job) warn(format string, args ...any) { fmt.Fprintf(j.log, format+"\n", args...) }

// command is a hook: it declares its flags, and returns what is to be done once they are read.
type command func(flags *flag.FlagSet) func(*job) error

var commands = map[string]command{
	"create-symlinks":                  createSymlinks,
	"enable-cuda-compat":               enableCUDACompat,
	"update-ldcache":                   updateLDCache,
	"disable-device-node-modification": disableDeviceNodeModification,
	"update-application-profile":       updateApplicationProfile,
	"chmod":                            chmod,
	"apply-cuda-memory-limits":         applyCUDAMemoryLimits,
}

// andThen stands between hooks of one run.
const andThen = "++"

// Main runs the hook that args (without the program's name) name, for the container whose OCI state comes on
// stdin; or several, one after another, with "++" between them, until one fails. Or it is in the container, and looks
// whether device nodes open: preflight NODE.... It returns the exit code: 0, 1 if a
// hook failed, 2 if it was called wrongly.
func Main(args []string, stdin io.Reader, stderr io.Writer) int {
	if len(args) > 0 && args[0] == preflightName {
		return preflight(args[1:], stderr)
	}
	if !slices.Contains(args, andThen) {
		return one(args, stdin, stderr)
	}
	state, err := io.ReadAll(io.LimitReader(stdin, maxJSON))
	if err != nil {
		fmt.Fprintf(stderr, "berth-cdi-hook: the container's OCI state on standard input: %v\n", err)
		return 1
	}
	for len(args) > 0 {
		n := slices.Index(args, andThen)
		if n < 0 {
			return one(args, bytes.NewReader(state), stderr)
		}
		if code := one(args[:n], bytes.NewReader(state), stderr); code != 0 {
			return code
		}
		args = args[n+1:]
	}
	return one(nil, nil, stderr) // nothing follows the last one
}

func one(args []string, stdin io.Reader, stderr io.Writer) int {
	names := strings.Join(slices.Sorted(maps.Keys(commands)), ", ")
	if len(args) == 0 {
		fmt.Fprintf(stderr, "berth-cdi-hook: no hook is named; there are %s\n", names)
		return 2
	}
	name := args[0]
	declare, ok := commands[name]
	if !ok {
		fmt.Fprintf(stderr, "berth-cdi-hook: there is no hook %q; there are %s\n", name, names)
		return 2
	}
	say := func(text string) { fmt.Fprintf(stderr, "berth-cdi-hook: %s: %s\n", name, text) }
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	run := declare(flags)
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		if err == nil {
			err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
		}
		say(err.Error())
		return 2
	}
	if err := inContainer(run, stdin, lines(say)); err != nil {
		say(err.Error())
		return 1
	}
	return 0
}

func inContainer(run func(*job) error, stdin io.Reader, log io.Writer) error {
	st, err := readState(stdin)
	if err != nil {
		return err
	}
	dir, err := st.rootDir()
	if err != nil {
		return err
	}
	root, err := inroot.Open(dir)
	if err != nil {
		return fmt.Errorf("the container's root: %w", err)
	}
	defer root.Close()
	// Specs make links in /dev, which runtimes mount. All else that is mounted may be the host's.
	root.KeepToMount("/dev")
	env := func() ([]string, error) {
		c, err := st.config()
		if err != nil {
			return nil, err
		}
		return c.Process.Env, nil
	}
	return run(&job{root: root, env: env, log: log, most: ofProgram})
}

// lines gives each write, which is a line, to say.
type lines func(string)

func (l lines) Write(p []byte) (int, error) {
	l(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(v string) error {
	if v == "" {
		return errors.New("empty")
	}
	*l = append(*l, v)
	return nil
}
