package document

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// yamlReader turns a YAML syntax tree into nodes.
type yamlReader struct {
	name    string
	anchors map[string]ast.Node
	nodes   int
}

func parseYAML(name string, data []byte) (n *Node, err error) {
	// The parser is another's; what it makes of hostile input must not end berth.
	defer func() {
		if p := recover(); p != nil {
			n, err = nil, &Error{Name: name, Message: fmt.Sprintf("it is not YAML: %v", p)}
		}
	}()
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		fault := &Error{Name: name, Message: "it is not YAML: " + firstLine(err.Error())}
		if syntax, ok := errors.AsType[yaml.Error](err); ok {
			fault.Message = "it is not YAML: " + firstLine(syntax.GetMessage())
			if tok := syntax.GetToken(); tok != nil && tok.Position != nil {
				fault.Line, fault.Col = tok.Position.Line, tok.Position.Column
			}
		}
		return nil, fault
	}
	var body ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.DirectiveType {
			continue
		}
		if body != nil {
			return nil, at(&Error{Name: name, Message: "it holds more than one document"}, doc.Body)
		}
		body = doc.Body
	}
	if body == nil {
		return nil, &Error{Name: name, Message: "it is empty"}
	}
	r := &yamlReader{name: name, anchors: map[string]ast.Node{}}
	return r.value(body, 0)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// at fills an error's position from a syntax node.
func at(e *Error, n ast.Node) *Error {
	e.Line, e.Col = place(n)
	return e
}

func place(n ast.Node) (line, col int) {
	switch v := n.(type) {
	case *ast.MappingNode:
		// Its own token is the colon of the first entry.
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return place(v.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return place(v.Key)
	case *ast.LiteralNode:
		if v.Start != nil && v.Start.Position != nil {
			return v.Start.Position.Line, v.Start.Position.Column
		}
	}
	if tok := n.GetToken(); tok != nil && tok.Position != nil {
		return tok.Position.Line, tok.Position.Column
	}
	return 0, 0
}

func (r *yamlReader) fault(n ast.Node, format string, args ...any) error {
	return at(&Error{Name: r.name, Message: fmt.Sprintf(format, args...)}, n)
}

func (r *yamlReader) value(n ast.Node, depth int) (*Node, error) {
	if r.nodes++; r.nodes > maxNodes || depth > maxDepth {
		return nil, r.fault(n, "it has more than %d levels, or %d values", maxDepth, maxNodes)
	}
	line, col := place(n)
	out := &Node{Line: line, Col: col}
	switch v := n.(type) {
	case *ast.NullNode:
	case *ast.BoolNode:
		out.Kind, out.Text = Bool, strconv.FormatBool(v.Value)
	case *ast.IntegerNode:
		out.Kind, out.Text = Number, fmt.Sprint(v.Value)
	case *ast.FloatNode:
		if math.IsInf(v.Value, 0) || math.IsNaN(v.Value) {
			return nil, r.fault(n, "%v is no number that a document can hold", v.Value)
		}
		out.Kind, out.Text = Number, strconv.FormatFloat(v.Value, 'g', -1, 64)
	case *ast.InfinityNode, *ast.NanNode:
		return nil, r.fault(n, "%s is no number that a document can hold", n.String())
	case *ast.StringNode:
		out.Kind, out.Text = String, v.Value
	case *ast.LiteralNode:
		out.Kind, out.Text = String, v.Value.Value
	case *ast.SequenceNode:
		out.Kind = List
		for _, item := range v.Values {
			child, err := r.value(item, depth+1)
			if err != nil {
				return nil, err
			}
			out.Items = append(out.Items, child)
		}
	case *ast.MappingNode:
		out.Kind = Map
		return out, r.fields(out, v.Values, depth)
	case *ast.MappingValueNode:
		out.Kind = Map
		return out, r.fields(out, []*ast.MappingValueNode{v}, depth)
	case *ast.AnchorNode:
		value, err := r.value(v.Value, depth+1)
		if err == nil {
			// Named only now: an alias inside of its own anchor names nothing.
			r.anchors[v.Name.String()] = v.Value
		}
		return value, err
	case *ast.AliasNode:
		target := r.anchors[v.Value.String()]
		if target == nil {
			return nil, r.fault(n, "*%s names no anchor above it", v.Value)
		}
		return r.value(target, depth+1)
	case *ast.TagNode:
		return nil, r.fault(n, "tags, such as %s, are not read", v.GetToken().Value)
	default:
		return nil, r.fault(n, "%s cannot stand here", n.Type())
	}
	return out, nil
}

func (r *yamlReader) fields(out *Node, values []*ast.MappingValueNode, depth int) error {
	seen := map[string]int{}
	var merged []Field
	for _, v := range values {
		if v.Key.IsMergeKey() {
			more, err := r.merge(v.Value, depth)
			if err != nil {
				return err
			}
			merged = append(merged, more...)
			continue
		}
		f := Field{}
		f.Line, f.Col = place(v.Key)
		switch key := v.Key.(type) {
		case *ast.StringNode:
			f.Key = key.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
			f.Key = v.Key.GetToken().Value
		default:
			return r.fault(v.Key, "a key must be a string")
		}
		if err := noTwice(r.name, seen, f); err != nil {
			return err
		}
		var err error
		if f.Value, err = r.value(v.Value, depth+1); err != nil {
			return err
		}
		out.Fields = append(out.Fields, f)
	}
	for _, f := range merged {
		if _, ok := seen[f.Key]; !ok {
			seen[f.Key] = f.Line
			out.Fields = append(out.Fields, f)
		}
	}
	return nil
}

// merge reads what a merge key ("<<") brings: a map, or a list of maps, the first of which wins.
func (r *yamlReader) merge(n ast.Node, depth int) ([]Field, error) {
	value, err := r.value(n, depth+1)
	if err != nil {
		return nil, err
	}
	maps := []*Node{value}
	if value.Kind == List {
		maps = value.Items
	}
	var fields []Field
	for _, m := range maps {
		if m.Kind != Map {
			return nil, r.fault(n, "<< takes a map, or a list of maps, not %s", m.Kind)
		}
		fields = append(fields, m.Fields...)
	}
	return fields, nil
}
