package wire

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A GPU brings some fifty mounts, which are most of its container's spec, and take encoding/json longer to read than the
// kernel to make half of them. So a spec begins with its mounts, and what reads them knows nothing else.

// mountsFirst is how a spec begins that EncodeSpec has made.
const mountsFirst = `{"mounts":[`

// EncodeSpec is a spec as JSON, its mounts first.
func EncodeSpec(spec *specs.Spec) ([]byte, error) {
	rest := *spec
	rest.Mounts = nil
	raw, err := json.Marshal(&rest)
	if err != nil || len(spec.Mounts) == 0 {
		return raw, err
	}
	mounts, err := json.Marshal(spec.Mounts)
	if err != nil {
		return nil, err
	}
	all := make([]byte, 0, len(mountsFirst)+len(mounts)+len(raw))
	all = append(append(all, mountsFirst...), mounts[1:]...)
	return append(append(all, ','), raw[1:]...), nil
}

// Mounts are those of a spec that EncodeSpec has made, read without the rest; of another it says no. DecodeSpec may find
// that the spec is none all the same.
func Mounts(raw []byte) (mounts []specs.Mount, ok bool) {
	if !bytes.HasPrefix(raw, []byte(mountsFirst)) {
		return nil, false
	}
	mounts, rest, ok := readMounts(string(raw[len(mountsFirst):]))
	return mounts, ok && !strings.Contains(rest, `"mounts"`) // named again, they would be others
}

// DecodeSpec reads any spec, and one of EncodeSpec fast.
func DecodeSpec(raw []byte) (*specs.Spec, error) {
	spec := new(specs.Spec)
	if !bytes.HasPrefix(raw, []byte(mountsFirst)) {
		return spec, json.Unmarshal(raw, spec)
	}
	mounts, rest, ok := readMounts(string(raw[len(mountsFirst):]))
	if !ok {
		return spec, json.Unmarshal(raw, spec)
	}
	var tail struct {
		specs.Spec
		Mounts json.RawMessage `json:"mounts"` // not nil where they are named again, be it as null
	}
	if err := json.Unmarshal(append([]byte{'{'}, rest...), &tail); err != nil {
		return nil, err
	}
	if tail.Mounts != nil {
		return spec, json.Unmarshal(raw, spec)
	}
	*spec = tail.Spec
	spec.Mounts = mounts
	return spec, nil
}

// readMounts reads mounts as encoding/json writes them, up to the end of their list and the comma behind it. Where it is
// anything else, also if that is valid JSON, it says no.
func readMounts(text string) (mounts []specs.Mount, rest string, ok bool) {
	mounts = make([]specs.Mount, 0, strings.Count(text, `"destination":`))
	options := make([]string, 0, 6*cap(mounts)) // one array for all that have few
	r := reader{text: text}
	for {
		r.skip("{")
		var m specs.Mount
		for more := true; more && !r.bad; more = r.next(',') {
			switch key := r.word(); key {
			case "destination":
				m.Destination = r.value()
			case "type":
				m.Type = r.value()
			case "source":
				m.Source = r.value()
			case "options":
				from := len(options)
				r.skip(":[")
				for more := true; more && !r.bad; more = r.next(',') {
					options = append(options, r.word())
				}
				r.skip("]")
				m.Options = options[from:len(options):len(options)]
			default:
				return nil, "", false
			}
		}
		r.skip("}")
		mounts = append(mounts, m)
		if r.bad {
			return nil, "", false
		}
		if !r.next(',') {
			break
		}
	}
	r.skip("],")
	return mounts, r.text, !r.bad && strings.HasPrefix(r.text, `"`)
}

// reader reads JSON without spaces, all of whose text is plain ASCII.
type reader struct {
	text string
	bad  bool
}

// skip goes past what has to be there.
func (r *reader) skip(what string) {
	if r.bad || !strings.HasPrefix(r.text, what) {
		r.bad = true
		return
	}
	r.text = r.text[len(what):]
}

// next goes past a byte if it is there.
func (r *reader) next(b byte) bool {
	if r.bad || r.text == "" || r.text[0] != b {
		return false
	}
	r.text = r.text[1:]
	return true
}

// word is a string.
func (r *reader) word() string {
	r.skip(`"`)
	end := strings.IndexByte(r.text, '"')
	r.bad = r.bad || end < 0
	for i := 0; !r.bad && i < end; i++ {
		c := r.text[i]
		r.bad = c < ' ' || c == '\\' || c > '~'
	}
	if r.bad {
		return ""
	}
	w := r.text[:end]
	r.text = r.text[end+1:]
	return w
}

// value is the string behind a key.
func (r *reader) value() string {
	r.skip(":")
	return r.word()
}
