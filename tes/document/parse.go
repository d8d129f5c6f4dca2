package document

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// The bounds of a document, so that a small file cannot cost much.
const (
	maxDepth = 64
	maxNodes = 1 << 20
)

// Format is how a document is written.
type Format string

// The formats.
const (
	JSON Format = "json"
	YAML Format = "yaml"
)

// FormatOf tells a document's format by its name's extension, and else by whether it begins with a brace.
func FormatOf(name string, data []byte) Format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json":
		return JSON
	case ".yaml", ".yml":
		return YAML
	}
	if text := bytes.TrimLeft(data, " \t\r\n"); len(text) > 0 && text[0] == '{' {
		return JSON
	}
	return YAML
}

// Parse reads a document. JSON is read strictly (RFC 8259); YAML as YAML 1.2, one document, with anchors and
// merge keys resolved. Keys are strings, and a key twice in a map is an error. Errors are *Error.
func Parse(name string, data []byte, format Format) (*Node, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if at := invalidUTF8(data); at >= 0 {
		line, col := position(data, at)
		return nil, &Error{Name: name, Line: line, Col: col, Message: fmt.Sprintf("byte 0x%02x is not UTF-8", data[at])}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, &Error{Name: name, Message: "it is empty"}
	}
	if format == JSON {
		return parseJSON(name, data)
	}
	return parseYAML(name, data)
}

func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; ; {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size < 2 {
			return i
		}
		i += size
	}
}

// position turns an offset into a line and a column, in characters, both from 1.
func position(data []byte, offset int) (line, col int) {
	offset = max(0, min(offset, len(data)))
	before := data[:offset]
	return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// positions finds the positions of offsets that only grow, without counting the same lines twice.
type positions struct {
	data      []byte
	at        int
	line      int
	lineStart int
}

func (p *positions) of(offset int) (line, col int) {
	for ; p.at < offset; p.at++ {
		if p.data[p.at] == '\n' {
			p.line++
			p.lineStart = p.at + 1
		}
	}
	return p.line + 1, 1 + utf8.RuneCount(p.data[p.lineStart:offset])
}
