package cli

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestReference fails when docs/cli.md is not what the commands say.
func TestReference(t *testing.T) {
	want, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := writeReference(&got, (&app{out: io.Discard, err: io.Discard}).root()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("docs/cli.md is not what the commands say; run: go generate ./internal/cli")
	}
}

// TestExamples: every command that does something has an example, and each has flags that there are.
func TestExamples(t *testing.T) {
	root := (&app{out: io.Discard, err: io.Discard}).root()
	inner := regexp.MustCompile(`\$\([^)]*\)`)
	everywhere(root, func(c *cobra.Command) {
		if c.HasSubCommands() || c.Hidden || c.Name() == "help" || c.Name() == "completion" || c.Name() == "oci-hook" {
			return // their texts say it, and no person calls the last
		}
		calls := 0
		for line := range strings.Lines(inner.ReplaceAllString(c.Example, "x")) {
			for part := range strings.SplitSeq(strings.ReplaceAll(line, "&&", "|"), "|") {
				words := strings.Fields(part)
				if len(words) == 0 || words[0] != "berth" {
					continue
				}
				found, rest, err := root.Find(words[1:])
				if found == c {
					calls++
				}
				if err == nil {
					err = found.ParseFlags(rest)
				}
				if err == nil {
					err = found.ValidateArgs(found.Flags().Args())
				}
				if err != nil {
					t.Errorf("%s: the example %q: %v", c.CommandPath(), line, err)
				}
			}
		}
		if calls == 0 {
			t.Errorf("%s has no example", c.CommandPath())
		}
	})
}

// TestCommandsAreDescribed holds every command to what the reference needs.
func TestCommandsAreDescribed(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" && !cmd.Hidden {
			t.Errorf("%s has no short description", cmd.CommandPath())
		}
		if cmd.RunE == nil {
			t.Errorf("%s has no function that runs it", cmd.CommandPath())
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk((&app{out: io.Discard, err: io.Discard}).root())
}
