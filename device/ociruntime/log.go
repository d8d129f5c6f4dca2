package ociruntime

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// say tells of an error or of something odd where engines look for it: in the runtime's log, in the form that they
// asked for, and on standard error.
func say(c *command, stderr io.Writer, level, text string) {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	fmt.Fprintf(stderr, "berth: %s\n", text)
	if c.log == "" {
		return
	}
	f, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return // standard error has it
	}
	defer f.Close()
	now := time.Now().Format(time.RFC3339)
	if !c.json {
		fmt.Fprintf(f, "time=%q level=%s msg=%q\n", now, level, text)
		return
	}
	_ = json.NewEncoder(f).Encode(struct {
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{level, text, now})
}
