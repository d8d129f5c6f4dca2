package cdi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"

	"go.yaml.in/yaml/v3"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// ownMark begins each file that berth writes. A comment, since annotations would need a newer version of the
// standard than most specs do.
const ownMark = "# Written by berth, which may write it again.\n"

// Marshal encodes a spec at the lowest version that has all it uses, after checking it. It marks the text as
// berth's own.
func Marshal(doc *specs.Spec) ([]byte, error) {
	s, err := atLowestVersion(doc)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(ownMark)
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(s.doc); err != nil {
		return nil, fmt.Errorf("encode CDI spec %s: %w", doc.Kind, err)
	}
	return out.Bytes(), enc.Close()
}

// MarshalJSON is Marshal in JSON, which has no place for a mark.
func MarshalJSON(doc *specs.Spec) ([]byte, error) {
	s, err := atLowestVersion(doc)
	if err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(s.doc, "", "  ")
	return append(out, '\n'), err
}

func atLowestVersion(doc *specs.Spec) (*Spec, error) {
	copied := (&Spec{doc: doc}).Document()
	var err error
	if copied.Version, err = MinimumVersion(copied); err != nil {
		return nil, err
	}
	s, err := newSpec(copied)
	if err != nil {
		return nil, fmt.Errorf("CDI spec %s: %w: %w", doc.Kind, berth.ErrInvalid, err)
	}
	return s, nil
}

// Write puts a spec into a directory of the host, as NAME.yaml, in one step: a reader sees the old file or the
// new one. A missing directory is made. It returns the path of the file.
func Write(host Host, dir, name string, doc *specs.Spec) (string, error) {
	data, err := Marshal(doc)
	if err != nil {
		return "", err
	}
	root, err := host.open()
	if err != nil {
		return "", err
	}
	defer root.Close()
	file := path.Join(dir, name+".yaml")
	if path.Base(file) != name+".yaml" {
		return "", fmt.Errorf("%w name of a CDI spec file: %q", berth.ErrInvalid, name)
	}
	return file, writeFile(root, file, data)
}

func writeFile(root *inroot.Root, file string, data []byte) error {
	if err := root.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("write CDI spec %s: %w", file, err)
	}
	return nil
}
