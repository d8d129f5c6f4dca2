package cli

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
	"github.com/berth-project/berth/tes"
)

// applyFiles sets inputs, outputs and volumes.
func (a *app) applyFiles(o *runOptions, t *berth.Task) error {
	for _, s := range o.inputs {
		p, err := parsePair(s, "type", "name")
		if err != nil {
			return fmt.Errorf("run: --input: %w", err)
		}
		in := berth.Input{Name: p.options["name"], URL: a.hostURL(p.src), Path: p.dst, Type: fileType(p)}
		if strings.HasSuffix(p.src, "/") {
			in.Type = berth.Directory
		} else if strings.HasSuffix(p.dst, "/") && p.dst != "/" {
			in.Path = path.Join(p.dst, path.Base(p.src)) // as cp(1) does
		}
		in.Path = tes.CleanPath(in.Path)
		t.Inputs = append(t.Inputs, in)
	}
	for _, s := range o.outputs {
		p, err := parsePair(s, "type", "name", "prefix", "optional!")
		if err != nil {
			return fmt.Errorf("run: --output: %w", err)
		}
		t.Outputs = append(t.Outputs, a.output(p))
	}
	for _, s := range o.volumes {
		v, err := parseVolume(s)
		if err != nil {
			return err
		}
		t.Volumes = append(t.Volumes, v)
	}
	return nil
}

func fileType(p pair) berth.FileType { return berth.FileType(strings.ToUpper(p.options["type"])) }

func (a *app) output(p pair) berth.Output {
	out := berth.Output{Name: p.options["name"], URL: a.hostURL(p.src), Path: tes.CleanPath(p.dst), Type: fileType(p), PathPrefix: p.options["prefix"], Optional: p.on("optional")}
	switch {
	case tes.IsPattern(p.dst):
		if out.PathPrefix == "" {
			before := p.dst[:strings.IndexAny(p.dst, "*?[")]
			out.PathPrefix = path.Dir(before + "x")
		}
	case strings.HasSuffix(p.dst, "/") && p.dst != "/":
		out.Type = berth.Directory
	case strings.HasSuffix(out.URL, "/") && out.Type != berth.Directory:
		out.URL += path.Base(p.dst) // as cp(1) does
	}
	return out
}

// parseVolume reads CONTAINER[:SIZE], or dst=CONTAINER,size=SIZE.
func parseVolume(s string) (berth.Volume, error) {
	dst, size, err := sized(s)
	if err != nil {
		return berth.Volume{}, fmt.Errorf("run: --volume: %w", err)
	}
	return berth.Volume{Path: tes.CleanPath(dst), Size: size}, nil
}

// sized reads an absolute container path and perhaps a size.
func sized(s string) (dst string, size int64, err error) {
	text := ""
	if isLong(s) {
		p, err := parseLong(s, []string{"size"})
		if err != nil {
			return "", 0, err
		}
		dst, text = p.dst, p.options["size"]
		if p.src != "" {
			return "", 0, invalid("%q: it has no source on this host; see --mount", s)
		}
	} else {
		dst = s
		if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasPrefix(s[i:], ":/") {
			dst, text = s[:i], strings.TrimPrefix(s[i+1:], "size=")
			if text == "" {
				return "", 0, invalid("%q: there is no size after the colon", s)
			}
		} else if i >= 0 && strings.HasPrefix(s, "/") {
			return "", 0, invalid("%q: it has no source on this host; see --mount", s)
		}
	}
	if !strings.HasPrefix(dst, "/") {
		return "", 0, invalid("%q: %q is not an absolute path in the container", s, dst)
	}
	if text != "" {
		size, err = berth.ParseSize(text)
	}
	return dst, size, err
}

// streamDir is where files of this host lie in the container that are its standard streams.
const streamDir = "/.berth"

// applyStreams sets the files of standard streams. A path that the task's inputs, mounts, volumes or outputs
// cover is the container's; any other is this host's, and becomes an input or an output.
func (a *app) applyStreams(o *runOptions, t *berth.Task) error {
	if o.file != "" {
		return nil
	}
	s := &t.Steps[0]
	if o.stdout != "" && o.stderr != "" && !covers(t, o.stdout) && path.Clean(a.hostURL(o.stdout)) == path.Clean(a.hostURL(o.stderr)) {
		return invalid("run: --stdout and --stderr: both name %s, and one would be lost; name two files, or have the task write both into one: --stdout %s IMAGE sh -c 'COMMAND 2>&1'", o.stdout, o.stdout)
	}
	for _, stream := range []struct {
		name, file string
		to         *string
	}{{"stdin", o.stdin, &s.Stdin}, {"stdout", o.stdout, &s.Stdout}, {"stderr", o.stderr, &s.Stderr}} {
		inside := path.Join(streamDir, stream.name)
		switch {
		case stream.file == "":
		case covers(t, stream.file):
			*stream.to = tes.CleanPath(stream.file)
		case stream.name == "stdin":
			t.Inputs = append(t.Inputs, berth.Input{URL: a.hostURL(stream.file), Path: inside, Type: berth.File})
			*stream.to = inside
		default:
			out := berth.Output{URL: a.hostURL(stream.file), Path: inside, Type: berth.File}
			if st, err := os.Stat(out.URL); err == nil && !st.IsDir() {
				if _, err := staging.Target(out.URL, nil); err != nil {
					return &quietError{fmt.Sprintf("--%s: cannot write %s: %v; without the flag the task's output is berth's own", stream.name, stream.file, err), berth.ErrConflict}
				}
			}
			t.Outputs = append(t.Outputs, out)
			*stream.to = inside
		}
	}
	return nil
}

// covers reports whether an absolute path lies in the container, by what the task puts there.
func covers(t *berth.Task, p string) bool {
	if !path.IsAbs(p) {
		return false
	}
	p = path.Clean(p)
	var trees, files []string
	for _, v := range t.Volumes {
		trees = append(trees, v.Path)
	}
	for _, in := range t.Inputs {
		trees = append(trees, in.Path)
	}
	for _, m := range t.Steps[0].Mounts {
		trees = append(trees, m.Target)
	}
	for _, out := range t.Outputs {
		if files = append(files, out.Path); out.PathPrefix != "" {
			trees = append(trees, out.PathPrefix)
		} else if out.Type == berth.Directory {
			trees = append(trees, out.Path)
		}
	}
	return slices.Contains(files, p) || slices.ContainsFunc(trees, func(tree string) bool {
		return p == tree || strings.HasPrefix(p, strings.TrimSuffix(tree, "/")+"/")
	})
}
