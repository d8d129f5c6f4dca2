package tes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes/document"
)

// Options say how a document is read. The zero value reads what a TES server would accept.
type Options struct {
	Name   string          // of the document, for errors
	Format document.Format // "" is found out by document.FormatOf
	// Dir is the host directory against which relative paths of inputs, outputs and mounts are resolved; ""
	// refuses them.
	Dir string
	// BackendParameters are the keys of resources.backend_parameters that mean something, in lower case.
	BackendParameters []string
}

// Parse reads a task document. Warnings are about what was accepted and has no effect, one sentence each.
// Errors are *document.Error with line and column, or document.Errors where there are several, and wrap
// ErrInvalid, or ErrUnsupported for what is reserved.
func Parse(data []byte, opts Options) (task berth.Task, warnings []string, err error) {
	format := opts.Format
	if format == "" {
		format = document.FormatOf(opts.Name, data)
	}
	root, err := document.Parse(opts.Name, data, format)
	if err != nil {
		return berth.Task{}, nil, err
	}
	r := &reader{opts: opts, places: map[string]*document.Node{}}
	r.task(root, &task)
	task.CallerDir = opts.Dir
	r.check(task)
	if err := r.errs.Err(); err != nil {
		return berth.Task{}, nil, err
	}
	return task, r.warnings, nil
}

// reader turns a tree into a task. It goes on after a fault, so that all are told at once.
type reader struct {
	opts     Options
	places   map[string]*document.Node // by path, for faults that are found after reading
	warnings []string
	errs     document.Errors
}

func (r *reader) fault(n *document.Node, path string, kind error, format string, args ...any) {
	e := &document.Error{Name: r.opts.Name, Path: path, Kind: kind, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		e.Line, e.Col = n.Line, n.Col
	}
	r.errs = append(r.errs, e)
}

// check tells the faults of Check at their places in the document, but for what follows from a fault that
// was told.
func (r *reader) check(task berth.Task) {
	told := slices.Clone(r.errs)
	for path, message := range faults(task) {
		given := r.places[path] != nil
		if slices.ContainsFunc(told, func(e *document.Error) bool { return follows(path, given, e.Path) }) {
			continue
		}
		for at := path; ; {
			if n := r.places[at]; n != nil || at == "" {
				r.fault(n, path, nil, "%s", message)
				break
			}
			at = parent(at)
		}
	}
}

// follows reports whether a fault at a path may come from the one at another: that is the same value, within
// it or around it, or, where nothing was given at the path, a key beside it, which may be misspelt.
func follows(path string, given bool, told string) bool {
	within := func(a, b string) bool {
		rest, ok := strings.CutPrefix(a, b)
		return ok && (rest == "" || b == "" || rest[0] == '.' || rest[0] == '[')
	}
	return within(path, told) || within(told, path) || !given && parent(path) == parent(told)
}

func parent(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// A field reads one value into where it belongs.
type field func(n *document.Node, path string)

// fields reads a map. Nulls are as if they were not there. Names are found in TES's spelling and in the
// camel case of protocol buffers.
func (r *reader) fields(n *document.Node, path string, fields map[string]field) {
	r.places[path] = n
	if n.Kind != document.Map {
		r.fault(n, path, nil, "it is %s, and must be a map", n.Kind)
		return
	}
	seen := map[string]string{}
	for _, f := range n.Fields {
		name := snake(f.Key)
		read, ok := fields[f.Key]
		if ok {
			name = f.Key
		} else {
			read, ok = fields[name]
		}
		key := &document.Node{Line: f.Line, Col: f.Col}
		switch before, twice := seen[name]; {
		case !ok:
			names := make([]string, 0, len(fields))
			for name := range fields {
				names = append(names, name)
			}
			slices.Sort(names)
			r.fault(key, join(path, f.Key), nil, "there is no such key%s", document.DidYouMean(name, names))
		case twice:
			r.fault(key, join(path, f.Key), nil, "it was given before, as %q", before)
		case f.Value.Kind != document.Null:
			r.places[join(path, name)] = f.Value
			read(f.Value, join(path, name))
		}
		seen[name] = f.Key
	}
}

// snake turns ramGb into ram_gb.
func snake(s string) string {
	var b strings.Builder
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// expect reports whether n is of a kind, and tells a fault where not.
func (r *reader) expect(n *document.Node, path string, kind document.Kind) bool {
	if n.Kind == kind {
		return true
	}
	hint := ""
	switch {
	case kind == document.String && (n.Kind == document.Number || n.Kind == document.Bool):
		hint = fmt.Sprintf(": write %q, in quotes", n.Text)
	case kind == document.List && n.Kind == document.String:
		hint = fmt.Sprintf(": write [%q]", n.Text)
		if words := strings.Fields(n.Text); len(words) > 1 {
			hint = fmt.Sprintf(": write its words one by one, [%q, ...], or [sh, -c, %q]", words[0], shorten(n.Text))
		}
	}
	r.fault(n, path, nil, "it is %s, and must be %s%s", n.Kind, kind, hint)
	return false
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}

func (r *reader) str(to *string) field {
	return func(n *document.Node, path string) {
		if r.expect(n, path, document.String) {
			*to = n.Text
		}
	}
}

func readString[T ~string](r *reader, to *T) field {
	return func(n *document.Node, path string) {
		if r.expect(n, path, document.String) {
			*to = T(n.Text)
		}
	}
}

func (r *reader) boolean(to *bool) field {
	return func(n *document.Node, path string) {
		if r.expect(n, path, document.Bool) {
			*to = n.Text == "true"
		}
	}
}

func (r *reader) number(n *document.Node, path string) float64 {
	if !r.expect(n, path, document.Number) {
		return 0
	}
	f, err := strconv.ParseFloat(n.Text, 64)
	if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
		r.fault(n, path, nil, "%s is out of range", n.Text)
	}
	return f
}

func (r *reader) float(to *float64) field {
	return func(n *document.Node, path string) { *to = r.number(n, path) }
}

func (r *reader) integer(to *int64) field {
	return func(n *document.Node, path string) {
		if !r.expect(n, path, document.Number) {
			return
		}
		i, err := strconv.ParseInt(n.Text, 10, 64)
		if err != nil {
			f, ferr := strconv.ParseFloat(n.Text, 64)
			if ferr != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<63 {
				r.fault(n, path, nil, "%s is not a whole number, or out of range", n.Text)
				return
			}
			i = int64(f)
		}
		*to = i
	}
}

// gib reads a number of GiB, or a string with a unit, into bytes.
func (r *reader) gib(to *int64) field {
	return func(n *document.Node, path string) {
		if n.Kind == document.String {
			r.size(to)(n, path)
			return
		}
		f := math.Ceil(r.number(n, path) * (1 << 30))
		if math.Abs(f) >= 1<<63 {
			r.fault(n, path, nil, "%s GiB are out of range", n.Text)
			return
		}
		*to = int64(f)
	}
}

// size reads a number of bytes, or a string with a unit.
func (r *reader) size(to *int64) field {
	return func(n *document.Node, path string) {
		if n.Kind == document.Number {
			r.integer(to)(n, path)
			return
		}
		if !r.expect(n, path, document.String) {
			return
		}
		var err error
		if *to, err = berth.ParseSize(n.Text); err != nil {
			r.fault(n, path, nil, "%v", err)
		}
	}
}

func (r *reader) duration(to *time.Duration) field {
	return func(n *document.Node, path string) {
		if n.Kind == document.Number {
			r.fault(n, path, nil, "it is a number, and must be a duration with its unit: write %q", n.Text+"s")
			return
		}
		if !r.expect(n, path, document.String) {
			return
		}
		var err error
		if *to, err = berth.ParseDuration(n.Text); err != nil {
			r.fault(n, path, nil, "%v", err)
		}
	}
}

// mode reads the permission bits of a directory, as chmod(1) takes them.
func (r *reader) mode(to *os.FileMode) field {
	return func(n *document.Node, path string) {
		if !r.expect(n, path, document.String) {
			return
		}
		bits, err := strconv.ParseUint(n.Text, 8, 12)
		if err != nil {
			r.fault(n, path, nil, "%q is no mode: write octal digits in quotes, such as \"1777\"", n.Text)
			return
		}
		*to = fileMode(bits)
	}
}

func (r *reader) list(read func(n *document.Node, path string)) field {
	return func(n *document.Node, path string) {
		if !r.expect(n, path, document.List) {
			return
		}
		for i, item := range n.Items {
			p := fmt.Sprintf("%s[%d]", path, i)
			r.places[p] = item
			read(item, p)
		}
	}
}

// strings reads a list of strings. An empty list is not nil.
func (r *reader) strings(to *[]string) field {
	return func(n *document.Node, path string) {
		*to = []string{}
		r.list(func(n *document.Node, path string) {
			if r.expect(n, path, document.String) {
				*to = append(*to, n.Text)
			}
		})(n, path)
	}
}

// some reads a list of strings that is nil where it is empty.
func (r *reader) some(to *[]string) field {
	return func(n *document.Node, path string) {
		r.strings(to)(n, path)
		if len(*to) == 0 {
			*to = nil
		}
	}
}

// strmap reads a map of strings; a null is an empty string.
func (r *reader) strmap(to *map[string]string) field {
	return func(n *document.Node, path string) {
		if !r.expect(n, path, document.Map) {
			return
		}
		for _, f := range n.Fields {
			p := join(path, f.Key)
			r.places[p] = f.Value
			if f.Value.Kind != document.Null && !r.expect(f.Value, p, document.String) {
				continue
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[f.Key] = f.Value.Text
		}
	}
}

// containerPath reads a path in the container, which is then clean.
func (r *reader) containerPath(to *string) field {
	return func(n *document.Node, path string) {
		r.str(to)(n, path)
		*to = CleanPath(*to)
	}
}

// hostPath reads a URL, or a host path, which is made absolute.
func (r *reader) hostPath(to *string) field {
	return func(n *document.Node, path string) {
		if !r.expect(n, path, document.String) {
			return
		}
		*to = n.Text
		switch s := n.Text; {
		case s == "", strings.HasPrefix(s, "/"), strings.Contains(s, "://"):
		case r.opts.Dir == "":
			r.fault(n, path, nil, "%q is neither a URL nor an absolute path", s)
		default:
			*to = filepath.Join(r.opts.Dir, s)
			if strings.HasSuffix(s, "/") {
				*to += "/"
			}
		}
	}
}

func (r *reader) raw(to *json.RawMessage) field {
	return func(n *document.Node, _ string) {
		var compact bytes.Buffer
		if err := json.Compact(&compact, document.Marshal(n, document.JSON)); err != nil {
			panic(fmt.Sprintf("tes: what a document holds is no JSON: %v", err)) // it was written a line above
		}
		*to = compact.Bytes()
	}
}
