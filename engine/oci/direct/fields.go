package direct

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// known is which fields of a type may be set.
type known struct {
	name   string // in JSON
	all    bool   // and all below
	fields []*known
	elem   *known // of a list
}

// knownFields makes the tree of the paths, below a spec.
func knownFields(paths []string) *known {
	root := &known{}
	for _, p := range paths {
		root.add(reflect.TypeFor[specs.Spec](), strings.Split(p, "."))
	}
	return root
}

// add adds a path below the type t; one that does not exist is a bug.
func (k *known) add(t reflect.Type, path []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case len(path) == 0 || path[0] == "*":
		k.all = true
		return
	case path[0] == "[]" && t.Kind() == reflect.Slice:
		if k.elem == nil {
			k.elem = &known{name: k.name + "[]"}
		}
		k.elem.add(t.Elem(), path[1:])
		return
	case t.Kind() == reflect.Struct:
		i := slices.IndexFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool { return jsonName(&f) == path[0] })
		if i < 0 {
			break
		}
		if k.fields == nil {
			k.fields = make([]*known, t.NumField())
		}
		if k.fields[i] == nil {
			k.fields[i] = &known{name: path[0]}
		}
		k.fields[i].add(t.Field(i).Type, path[1:])
		return
	}
	panic(fmt.Sprintf("direct: %s has no %s", t, path[0]))
}

// check refuses what is set in v and not known.
func (k *known) check(v reflect.Value) error {
	if name := k.unknown(v); name != "" {
		return fmt.Errorf("%s: %w by a direct start", strings.TrimPrefix(name, "."), berth.ErrUnsupported)
	}
	return nil
}

// unknown is the path, below v, of a field that is set and not known; "" where there is none.
func (k *known) unknown(v reflect.Value) string {
	if k != nil && k.all || v.IsZero() {
		return ""
	}
	switch v.Kind() { //nolint:exhaustive // all others hold a value
	case reflect.Pointer:
		return k.unknown(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			var sub *known
			if k != nil && k.fields != nil {
				sub = k.fields[i]
			}
			if name := sub.unknown(v.Field(i)); name != "" {
				f := v.Type().Field(i)
				return "." + jsonName(&f) + strings.TrimSuffix(name, ".")
			}
		}
		return ""
	case reflect.Slice:
		if k != nil && k.elem != nil {
			for i := range v.Len() {
				if name := k.elem.unknown(v.Index(i)); name != "" {
					return ".[]" + strings.TrimSuffix(name, ".")
				}
			}
			return ""
		}
		if v.Len() == 0 {
			return ""
		}
	case reflect.Map:
		if v.Len() == 0 {
			return ""
		}
	}
	return "."
}

// jsonName is the name of a field in JSON.
func jsonName(f *reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "" {
		return f.Name
	}
	return name
}
