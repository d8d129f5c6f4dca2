package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// jsonReader reads JSON that is known to be well formed.
type jsonReader struct {
	name  string
	data  []byte
	dec   *json.Decoder
	pos   positions
	nodes int
}

func parseJSON(name string, data []byte) (*Node, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		fault := &Error{Name: name, Message: "it is not JSON: " + err.Error()}
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			// The offset is that of the byte after the fault.
			fault.Line, fault.Col = position(data, int(syntax.Offset)-1)
			if int(syntax.Offset) >= len(data) && bytes.HasPrefix([]byte(syntax.Error()), []byte("unexpected end")) {
				fault.Line, fault.Col = position(data, len(data))
			}
		}
		return nil, fault
	}
	r := &jsonReader{name: name, data: data, dec: json.NewDecoder(bytes.NewReader(data)), pos: positions{data: data}}
	r.dec.UseNumber()
	return r.value(0)
}

// next reads a token, and where it begins.
func (r *jsonReader) next() (tok json.Token, line, col int, err error) {
	start := int(r.dec.InputOffset())
	for start < len(r.data) && bytes.IndexByte([]byte(" \t\r\n,:"), r.data[start]) >= 0 {
		start++
	}
	line, col = r.pos.of(start)
	tok, err = r.dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		err = &Error{Name: r.name, Line: line, Col: col, Message: "it is not JSON: " + err.Error()}
	}
	return tok, line, col, err
}

func (r *jsonReader) value(depth int) (*Node, error) {
	tok, line, col, err := r.next()
	if err != nil {
		return nil, err
	}
	n := &Node{Line: line, Col: col}
	if r.nodes++; r.nodes > maxNodes || depth > maxDepth {
		return nil, &Error{Name: r.name, Line: line, Col: col, Message: fmt.Sprintf("it has more than %d levels, or %d values", maxDepth, maxNodes)}
	}
	switch v := tok.(type) {
	case nil:
	case bool:
		n.Kind, n.Text = Bool, fmt.Sprint(v)
	case json.Number:
		n.Kind, n.Text = Number, v.String()
	case string:
		n.Kind, n.Text = String, v
	case json.Delim:
		if v == '[' {
			n.Kind = List
			err = r.items(n, depth)
		} else {
			n.Kind = Map
			err = r.fields(n, depth)
		}
	}
	return n, err
}

func (r *jsonReader) items(n *Node, depth int) error {
	for r.dec.More() {
		item, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.Items = append(n.Items, item)
	}
	_, _, _, err := r.next()
	return err
}

func (r *jsonReader) fields(n *Node, depth int) error {
	seen := map[string]int{}
	for r.dec.More() {
		tok, line, col, err := r.next()
		if err != nil {
			return err
		}
		f := Field{Key: tok.(string), Line: line, Col: col}
		if err := noTwice(r.name, seen, f); err != nil {
			return err
		}
		if f.Value, err = r.value(depth + 1); err != nil {
			return err
		}
		n.Fields = append(n.Fields, f)
	}
	_, _, _, err := r.next()
	return err
}

// noTwice refuses a key that was seen before, and notes it.
func noTwice(name string, seen map[string]int, f Field) error {
	if line, ok := seen[f.Key]; ok {
		return &Error{Name: name, Line: f.Line, Col: f.Col, Message: fmt.Sprintf("the key %q was given before, in line %d", f.Key, line)}
	}
	seen[f.Key] = f.Line
	return nil
}
