package cli

import (
	"bytes"
	"io"
	"os"
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
