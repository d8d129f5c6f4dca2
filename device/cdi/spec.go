package cdi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"tags.cncf.io/container-device-interface/pkg/parser"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// maxSpec is the largest spec file that is read, in bytes. Those of hosts with 16 GPUs in MIG slices have some
// hundred thousand.
const maxSpec = 16 << 20

// Spec is one spec file. It is never changed after it was read; several goroutines may use it.
type Spec struct {
	Path          string // as a process of the host names it
	Priority      int    // of its directory; the higher one wins
	Vendor, Class string
	Own           bool // berth wrote it, and may write it again

	doc *specs.Spec
}

// Document is a copy of what the file says.
func (s *Spec) Document() *specs.Spec {
	d := *s.doc
	d.Annotations = cloneMap(d.Annotations)
	d.ContainerEdits = *Append(nil, &s.doc.ContainerEdits)
	d.Devices = make([]specs.Device, len(s.doc.Devices))
	for i, dev := range s.doc.Devices {
		dev.Annotations = cloneMap(dev.Annotations)
		dev.ContainerEdits = *Append(nil, &s.doc.Devices[i].ContainerEdits)
		d.Devices[i] = dev
	}
	return &d
}

// Devices are the qualified names of the spec's devices, in the order of the file.
func (s *Spec) Devices() []string {
	names := make([]string, len(s.doc.Devices))
	for i := range s.doc.Devices {
		names[i] = s.name(i)
	}
	return names
}

func (s *Spec) name(i int) string {
	return parser.QualifiedName(s.Vendor, s.Class, s.doc.Devices[i].Name)
}

// ReadSpec reads and validates a spec file of the host. The error is one line and names the file, and the line
// in it where that is known.
func ReadSpec(host Host, path string, priority int) (*Spec, error) {
	root, err := host.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readSpec(root, path, priority)
}

func readSpec(root *inroot.Root, path string, priority int) (*Spec, error) {
	data, err := root.ReadFile(path, maxSpec)
	if err != nil {
		return nil, fmt.Errorf("CDI spec %s: %w", path, err)
	}
	s, err := parseSpec(data)
	if err != nil {
		if at, ok := errors.AsType[*lineError](err); ok {
			return nil, fmt.Errorf("CDI spec %s:%d: %w: %w", path, at.line, berth.ErrInvalid, at.err)
		}
		return nil, fmt.Errorf("CDI spec %s: %w: %w", path, berth.ErrInvalid, err)
	}
	s.Path, s.Priority = filepath.Clean(path), priority
	return s, nil
}

// Parse reads a spec and validates it.
func Parse(data []byte) (*Spec, error) {
	s, err := parseSpec(data)
	if err != nil {
		return nil, fmt.Errorf("CDI spec: %w: %w", berth.ErrInvalid, err)
	}
	return s, nil
}

func parseSpec(data []byte) (*Spec, error) {
	// The decoder is the one that the standard's own library uses: a file means the same to both.
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	var doc *specs.Spec
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF), err == nil && doc == nil:
		return nil, errors.New("the file is empty")
	case err != nil:
		return nil, yamlError(err)
	}
	s, err := newSpec(doc)
	if in, ok := errors.AsType[*deviceError](err); ok {
		if line := deviceLine(data, in.index); line > 0 {
			return nil, &lineError{line, err}
		}
	}
	if err != nil {
		return nil, err
	}
	s.Own = bytes.HasPrefix(data, []byte(ownMark))
	return s, nil
}

// newSpec takes over the document.
func newSpec(doc *specs.Spec) (*Spec, error) {
	s := &Spec{doc: doc}
	s.Vendor, s.Class = parser.ParseQualifier(doc.Kind)
	return s, s.validate()
}

func (s *Spec) validate() error {
	if err := ValidateVersion(s.doc); err != nil {
		return err
	}
	if err := parser.ValidateVendorName(s.Vendor); err != nil {
		return fmt.Errorf("kind %q: %w", s.doc.Kind, err)
	}
	if err := parser.ValidateClassName(s.Class); err != nil {
		return fmt.Errorf("kind %q: %w", s.doc.Kind, err)
	}
	if err := ValidateEdits(&s.doc.ContainerEdits); err != nil {
		return fmt.Errorf("containerEdits: %w", err)
	}
	if len(s.doc.Devices) == 0 {
		return errors.New("it describes no devices")
	}
	seen := map[string]bool{}
	for i := range s.doc.Devices {
		d := &s.doc.Devices[i]
		if err := ValidateDevice(d); err != nil {
			return &deviceError{i, err}
		}
		if seen[d.Name] {
			return &deviceError{i, fmt.Errorf("device %q is there twice", d.Name)}
		}
		seen[d.Name] = true
	}
	return nil
}

// ValidateDevice checks one device of a spec: its name, and that its edits are some and valid.
func ValidateDevice(d *specs.Device) error {
	if err := parser.ValidateDeviceName(d.Name); err != nil {
		return fmt.Errorf("device %q: %w", d.Name, err)
	}
	if isEmpty(&d.ContainerEdits) {
		return fmt.Errorf("device %q: it has no edits", d.Name)
	}
	if err := ValidateEdits(&d.ContainerEdits); err != nil {
		return fmt.Errorf("device %q: %w", d.Name, err)
	}
	return nil
}

// MinimumVersion is the lowest version of the standard in which doc can be written.
func MinimumVersion(doc *specs.Spec) (string, error) {
	if err := noNulls(doc); err != nil {
		return "", err
	}
	return specs.MinimumRequiredVersion(doc)
}

// ValidateVersion checks that doc's version exists (0.3.0 to 1.1.0) and has all that doc uses.
func ValidateVersion(doc *specs.Spec) error {
	if err := noNulls(doc); err != nil {
		return err
	}
	if doc.Version == "" {
		return errors.New("cdiVersion is missing")
	}
	if err := specs.ValidateVersion(doc); err != nil {
		return fmt.Errorf("cdiVersion %q: %w", doc.Version, err)
	}
	return nil
}

// noNulls finds lists with entries that are null, on which the standard's library panics.
func noNulls(doc *specs.Spec) error {
	null := func(e *Edits) bool {
		return slices.Contains(e.DeviceNodes, nil) || slices.Contains(e.Mounts, nil) || slices.Contains(e.Hooks, nil) || slices.Contains(e.NetDevices, nil)
	}
	for i := range doc.Devices {
		if null(&doc.Devices[i].ContainerEdits) {
			return &deviceError{i, fmt.Errorf("device %q: a list in its edits has an empty entry", doc.Devices[i].Name)}
		}
	}
	if null(&doc.ContainerEdits) {
		return errors.New("containerEdits: a list has an empty entry")
	}
	return nil
}

// deviceError is an error in one device of a spec.
type deviceError struct {
	index int
	err   error
}

func (e *deviceError) Error() string { return e.err.Error() }
func (e *deviceError) Unwrap() error { return e.err }

// lineError is an error whose line is known.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

var (
	yamlLine     = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	yamlNotFound = regexp.MustCompile(`^field (\S+) not found in type .*$`)
)

// yamlError takes the first complaint out of what the decoder says, and its line.
func yamlError(err error) error {
	text := err.Error()
	if many, ok := errors.AsType[*yaml.TypeError](err); ok && len(many.Errors) > 0 {
		text = many.Errors[0]
	}
	text, _, _ = strings.Cut(text, "\n")
	m := yamlLine.FindStringSubmatch(text)
	if m == nil {
		return errors.New(strings.TrimPrefix(text, "yaml: "))
	}
	line := 0
	_, _ = fmt.Sscan(m[1], &line)
	return &lineError{line, errors.New(yamlNotFound.ReplaceAllString(m[2], "unknown field $1"))}
}

// deviceLine finds the line in which a device of a spec begins; 0 if it cannot.
func deviceLine(data []byte, index int) int {
	var doc yaml.Node
	if yaml.Unmarshal(data, &doc) != nil || len(doc.Content) == 0 {
		return 0
	}
	top := doc.Content[0].Content
	for i := 0; i+1 < len(top); i += 2 {
		if top[i].Value == "devices" && index < len(top[i+1].Content) {
			return top[i+1].Content[index].Line
		}
	}
	return 0
}
