package document

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// Marshal writes a document that Parse reads as the same tree.
func Marshal(n *Node, format Format) []byte {
	var b bytes.Buffer
	if format == JSON {
		writeJSON(&b, n, "\n")
	} else {
		writeYAML(&b, n, "\n", true)
	}
	b.WriteByte('\n')
	return bytes.TrimPrefix(b.Bytes(), []byte("\n"))
}

func writeJSON(b *bytes.Buffer, n *Node, indent string) {
	inner := indent + "  "
	switch {
	case n.Kind == List && len(n.Items) > 0:
		b.WriteByte('[')
		for i, item := range n.Items {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(inner)
			writeJSON(b, item, inner)
		}
		b.WriteString(indent + "]")
	case n.Kind == Map && len(n.Fields) > 0:
		b.WriteByte('{')
		for i, f := range n.Fields {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(inner + quote(f.Key) + ": ")
			writeJSON(b, f.Value, inner)
		}
		b.WriteString(indent + "}")
	default:
		b.WriteString(scalar(n, quote))
	}
}

// writeYAML writes a value after its key's colon, or as an item where first. indent begins with a newline.
func writeYAML(b *bytes.Buffer, n *Node, indent string, first bool) {
	begin := func(i int) {
		if first && i == 0 && indent != "\n" {
			return // on the line of the dash
		}
		b.WriteString(indent)
	}
	switch {
	case n.Kind == List && len(n.Items) > 0:
		for _, item := range n.Items {
			b.WriteString(indent + "- ")
			if item.Kind == List && len(item.Items) > 0 {
				b.Truncate(b.Len() - 1)
			}
			writeYAML(b, item, indent+"  ", true)
		}
	case n.Kind == Map && len(n.Fields) > 0:
		for i, f := range n.Fields {
			begin(i)
			b.WriteString(yamlString(f.Key) + ":")
			inner := indent
			if f.Value.Kind == Map {
				inner = indent + "  "
			}
			writeYAML(b, f.Value, inner, false)
		}
	default:
		if !first {
			b.WriteByte(' ')
		}
		b.WriteString(scalar(n, yamlString))
	}
}

func scalar(n *Node, str func(string) string) string {
	switch n.Kind {
	case Null:
		return "null"
	case String:
		return str(n.Text)
	case List:
		return "[]"
	case Map:
		return "{}"
	case Bool, Number:
	}
	return n.Text
}

// plain are strings that YAML 1.1 and 1.2 both read as strings without quotes: words and paths, sizes and
// durations.
var plain = regexp.MustCompile(`^([A-Za-z_/][A-Za-z0-9_./:@%+=-]*|[0-9]+[KMGTPE]i?B|([0-9]+(h|m|s|ms))+)$`)

func yamlString(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return quote(s)
	}
	if plain.MatchString(s) && !strings.HasSuffix(s, ":") && len(s) < 1000 {
		return s
	}
	return quote(s)
}

// quote writes a string as JSON does, which YAML reads too.
func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string can always be written
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\u007f", `\u007f`)
}
