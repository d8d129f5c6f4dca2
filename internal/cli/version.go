package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version may be set at the build: -ldflags "-X github.com/berth-project/berth/internal/cli.version=0.1.0".
var version = ""

// build says what this berth was made from.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildOf() build {
	b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "version [flags]",
		Short:   "Tell the version of berth",
		Example: `  berth version --format json`,
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return a.tellVersion(format) },
	}
	formatFlag(cmd, &format)
	return cmd
}

func (a *app) tellVersion(format string) error {
	b := buildOf()
	if format == "json" {
		return jsonEncoder(a.out).Encode(b)
	}
	text := "berth " + dash(b.Version)
	if b.Commit != "" {
		text += ", commit " + b.Commit[:min(12, len(b.Commit))]
		if b.Modified {
			text += " and changes"
		}
	}
	_, err := fmt.Fprintf(a.out, "%s, %s, %s\n", text, b.Go, b.Platform)
	return err
}
