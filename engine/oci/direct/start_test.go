package direct

import (
	"testing"

	"github.com/berth-project/berth/engine/oci/bundle"
)

func TestRun(t *testing.T) {
	s := testStarter(t)
	tests := []struct {
		name, script string
		want         outcome
	}{
		{"output", "echo out; echo err >&2", outcome{stdout: "out\n", stderr: "err\n"}},
		{"exit code", "exit 3", outcome{status: bundle.Status{Code: 3}}},
		{"pid 1", "echo $$", outcome{stdout: "1\n"}},
		{"hostname", "hostname", outcome{stdout: "berth\n"}},
		{"stderr by name", "echo first >&2; echo second >/dev/stderr; echo third >&2", outcome{stderr: "first\nsecond\nthird\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, s, tt.script, nil)
			got.status.CPU = 0
			if got.stdout != tt.want.stdout || got.stderr != tt.want.stderr || got.status != tt.want.status {
				t.Errorf("got %v\nwant %v", got, tt.want)
			}
		})
	}
}
