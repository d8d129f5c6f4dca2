package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// object is a JSON object whose members keep their order and, where they are not changed, their text.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

// parseObject reads an object, of which members that are there twice count as the last.
func parseObject(data []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	var o object
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		o.set(key, value)
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("something follows the JSON object")
	}
	return o, nil
}

func (o object) index(key string) int {
	return slices.IndexFunc(o, func(m member) bool { return m.key == key })
}

// get decodes a member; one that is not there, or null, leaves v as it is.
func (o object) get(key string, v any) error {
	i := o.index(key)
	if i < 0 {
		return nil
	}
	if err := json.Unmarshal(o[i].value, v); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// child reads a member that is an object; nil where there is none.
func (o object) child(key string) (object, error) {
	i := o.index(key)
	if i < 0 || string(o[i].value) == "null" {
		return nil, nil
	}
	c, err := parseObject(o[i].value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return c, nil
}

// set replaces a member, or adds it at the end.
func (o *object) set(key string, value json.RawMessage) {
	if i := o.index(key); i >= 0 {
		(*o)[i].value = value
		return
	}
	*o = append(*o, member{key, value})
}

func (o *object) encode(key string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		o.set(key, data)
	}
	return err
}

// text is the object as JSON.
func (o object) text() json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, _ := json.Marshal(m.key) // of a string: it cannot fail
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}
