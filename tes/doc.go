// Package tes speaks GA4GH's Task Execution Service, version 1.1: it reads task documents (JSON or YAML) into
// berth's terms and writes them back. A document is a TES task and berth's own fields beside TES's;
// docs/task-format.md describes both. Package document reads the text; this package knows what it means.
//
// It runs nothing, and it never looks at the host: whether an image or an input is there is found out later.
package tes
