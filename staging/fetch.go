package staging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Staged is an input that is ready to be mounted, read-only, at its Path.
type Staged struct {
	berth.Input        // with Type filled in
	HostPath    string // a file or directory of this host
	Size        int64  // bytes of a file; 0 of a directory
}

// Source fetches inputs of some URL schemes.
type Source interface {
	// Schemes names what it fetches, in lower case: "http", "s3".
	Schemes() []string
	// Fetch brings what url names to dst, which is not there yet: a file, or for berth.Directory a
	// directory. typ may be "", and then is found out. It blocks until all is there, and leaves nothing
	// after an error. The error wraps a kind of package berth and names the URL without its secrets.
	Fetch(ctx context.Context, url string, typ berth.FileType, dst string) error
}

// FetchOptions say how inputs are fetched. The zero value works.
type FetchOptions struct {
	// Sources are asked for URLs of schemes other than file; nil is http and https alone, through Client.
	Sources []Source
	// Client is for http and https; nil is a client without a cache that uses the proxies of the
	// environment.
	Client *http.Client
	// Parallel is how many inputs are fetched at a time; 0 is 4.
	Parallel int
	// Tries, Backoff, Stall and Retrying are those of HTTP.
	Tries    int
	Backoff  time.Duration
	Stall    time.Duration
	Retrying func(text string)
	// Logger is told of tries that failed; nil is silent.
	Logger *slog.Logger
}

const defaultParallel = 4

// Fetch makes inputs ready to be mounted, in their order. What is on this host already is checked and not
// copied; all else is brought into dir, which must be there and belong to this task alone. The kinds of
// error: ErrNotFound, ErrDenied, ErrInvalid, ErrUnsupported, ErrUnavailable after retries, and ErrExhausted
// (disk full). Of inputs on this host all that is wrong is said, a line each.
func Fetch(ctx context.Context, inputs []berth.Input, dir string, opts FetchOptions) ([]Staged, error) {
	staged := make([]Staged, len(inputs))
	sources := opts.sources()
	var errs []error
	for i, in := range inputs {
		err := CheckInput(in, sources...)
		if err == nil {
			staged[i], err = local(in, dir, i)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(opts.parallel())
	for i := range staged {
		if staged[i].HostPath != "" {
			continue
		}
		group.Go(func() (err error) {
			staged[i], err = fetch(ctx, inputs[i], filepath.Join(dir, inputName(i)), sources)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return staged, nil
}

// CheckInput reports whether an input can be fetched, as far as that can be said without looking for it.
// With no sources, those of the zero FetchOptions count.
func CheckInput(in berth.Input, sources ...Source) error {
	if sources == nil {
		sources = FetchOptions{}.sources()
	}
	if err := checkContainerPath(in.Path); err != nil {
		return fmt.Errorf("input: %w", err)
	}
	if path.Clean(in.Path) == "/" {
		return fmt.Errorf("input %s: %w: nothing can be mounted at the container's root", in.Path, berth.ErrInvalid)
	}
	if in.Type != "" && in.Type != berth.File && in.Type != berth.Directory {
		return fmt.Errorf("input %s: %w: type %q is neither FILE nor DIRECTORY", in.Path, berth.ErrInvalid, in.Type)
	}
	if in.Content != nil {
		if in.Type == berth.Directory {
			return fmt.Errorf("input %s: %w: content makes a file, and no directory", in.Path, berth.ErrInvalid)
		}
		return nil
	}
	if in.URL == "" {
		return fmt.Errorf("input %s: %w: it has neither a URL nor content", in.Path, berth.ErrInvalid)
	}
	_, here, err := HostPath(in.URL)
	if err != nil {
		return fmt.Errorf("input %s: %w", in.Path, err)
	}
	if scheme := schemeOf(in.URL); !here && sourceOf(sources, scheme) == nil {
		return fmt.Errorf("input %s: %w: scheme %s; inputs come from %s", in.Path, berth.ErrUnsupported, scheme, known(sources))
	}
	return nil
}

func (o FetchOptions) parallel() int {
	if o.Parallel > 0 {
		return o.Parallel
	}
	return defaultParallel
}

func (o FetchOptions) sources() []Source {
	if o.Sources != nil {
		return o.Sources
	}
	return []Source{&HTTP{Client: o.Client, Tries: o.Tries, Backoff: o.Backoff, Stall: o.Stall, Retrying: o.Retrying, Logger: o.Logger}}
}

func sourceOf(sources []Source, scheme string) Source {
	for _, s := range sources {
		if slices.Contains(s.Schemes(), scheme) {
			return s
		}
	}
	return nil
}

// known lists, for people, where inputs come from.
func known(sources []Source) string {
	out := []string{"file://"}
	for _, s := range sources {
		for _, scheme := range s.Schemes() {
			out = append(out, scheme+"://")
		}
	}
	return strings.Join(out, ", ") + ", absolute paths and inline content"
}

func inputName(i int) string { return "input-" + strconv.Itoa(i) }

// local stages what needs no fetching; HostPath stays empty for the rest.
func local(in berth.Input, dir string, i int) (Staged, error) {
	if in.Content != nil {
		return inline(in, filepath.Join(dir, inputName(i)))
	}
	p, here, err := HostPath(in.URL)
	if err != nil || !here {
		return Staged{Input: in}, err
	}
	// Where it leads to now is what will be mounted.
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return Staged{}, localFault(p, err)
	}
	return describe(in, real, p)
}

// describe fills in what is found out about a file or directory, and checks it against what was declared.
func describe(in berth.Input, hostPath, named string) (Staged, error) {
	info, err := os.Stat(hostPath)
	if err != nil {
		return Staged{}, localFault(named, err)
	}
	s := Staged{Input: in, HostPath: hostPath}
	switch {
	case info.IsDir():
		s.Type = berth.Directory
	case info.Mode().IsRegular():
		s.Type, s.Size = berth.File, info.Size()
	default:
		return Staged{}, fmt.Errorf("cannot mount input `%s`: %w: it is neither a file nor a directory", named, berth.ErrInvalid)
	}
	if in.Type != "" && in.Type != s.Type {
		return Staged{}, fmt.Errorf("cannot mount input `%s`: %w: its type is %s, and %s was declared", named, berth.ErrInvalid, s.Type, in.Type)
	}
	access := uint32(unix.R_OK)
	if info.IsDir() {
		access |= unix.X_OK
	}
	if err := unix.Faccessat(unix.AT_FDCWD, hostPath, access, unix.AT_EACCESS); err != nil {
		return Staged{}, localFault(named, err)
	}
	return s, nil
}

func localFault(p string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return &fault{text: "cannot mount input `" + p + "` as it does not exist", kind: berth.ErrNotFound, cause: err}
	case errors.Is(err, fs.ErrPermission):
		return &fault{text: "cannot mount input `" + p + "` as it cannot be read: " + reason(err), kind: berth.ErrDenied, cause: err}
	}
	return fmt.Errorf("cannot mount input `%s`: %w", p, err)
}

// inline writes an input's content.
func inline(in berth.Input, dst string) (Staged, error) {
	// Whoever the container's user is may read it; the directory above is the task's own.
	if err := writeFile(dst, []byte(*in.Content)); err != nil {
		return Staged{}, writeFault(in.Path, err)
	}
	return Staged{
		Input:    berth.Input{Name: in.Name, URL: in.URL, Content: in.Content, Path: in.Path, Type: berth.File},
		HostPath: dst, Size: int64(len(*in.Content)),
	}, nil
}

// writeFile writes a file whole or not at all.
func writeFile(dst string, data []byte) error {
	tmp := dst + partSuffix
	err := os.WriteFile(tmp, data, 0o644)
	if err == nil {
		err = os.Chmod(tmp, 0o644)
	}
	if err == nil {
		err = os.Rename(tmp, dst)
	}
	if err != nil {
		return errors.Join(err, removeAll(tmp))
	}
	return nil
}

const partSuffix = ".part" // of what is not whole yet

func writeFault(name string, err error) error {
	if kind := kindOf(err); errors.Is(kind, berth.ErrExhausted) {
		return &fault{text: fmt.Sprintf("input %s: cannot be written: the disk is full (%s)", name, reason(err)), kind: kind, cause: err}
	} else if kind != nil {
		return fmt.Errorf("input %s: %w: cannot be written: %w", name, kind, err)
	}
	return fmt.Errorf("input %s: %w", name, err)
}

// fetch brings one input here.
func fetch(ctx context.Context, in berth.Input, dst string, sources []Source) (Staged, error) {
	s := sourceOf(sources, schemeOf(in.URL))
	if err := s.Fetch(ctx, in.URL, in.Type, dst); err != nil {
		if kind := kindOf(err); errors.Is(kind, berth.ErrExhausted) {
			return Staged{}, writeFault(in.Path, err)
		}
		return Staged{}, fmt.Errorf("input %s: %w", in.Path, err)
	}
	return describe(in, dst, in.Path)
}
