package cli

import (
	"os/exec"
	"strings"
	"testing"
)

// TestBashCompletes has a bash complete, with no more than berth's script.
func TestBashCompletes(t *testing.T) {
	b := newBench(t)
	script, code := b.output("completion", "bash")
	if code != 0 {
		t.Fatal(script)
	}
	const ask = `
berth() { "$PROGRAM" "$@"; }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=63
__start_berth
printf '%s\n' "${COMPREPLY[@]}"`
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"berth", "im"}, "image"},
		{[]string{"berth", "image", "pu"}, "pull"},
		{[]string{"berth", "run", "--mem"}, "--memory"},
		{[]string{"berth", "completion", ""}, "bash\nfish\nzsh"},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"--norc", "-c", script + ask, "bash"}, c.line...)...)
		cmd.Env = append(b.berth().Env, "PROGRAM="+b.executable())
		out, err := cmd.CombinedOutput()
		got := strings.Fields(string(out))
		for w := range strings.FieldsSeq(c.want) {
			if err != nil || !strings.Contains(" "+strings.Join(got, " ")+" ", " "+w+" ") {
				t.Errorf("%q: %v, %q, want %q", c.line, err, got, c.want)
			}
		}
	}
}
