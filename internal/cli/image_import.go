package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

// importSilent is for how long nothing is said of an import: most are done by then.
const importSilent = time.Second

type imageImportOptions struct {
	platform, workdir, user, stopSignal string
	progress                            string
	quiet                               bool
	env, labels, entrypoint, cmd        []string
}

func (a *app) imageImportCommand() *cobra.Command {
	o := &imageImportOptions{}
	cmd := &cobra.Command{
		Use:   "import [flags] TAR|- NAME",
		Short: "Make an image of an archive of a root file system",
		Long: `Make an image of one layer from an archive of a root file system: tar, plain or compressed. - is standard input.
The image's ID is printed. The flags say how the image wants to be run.`,
		Example: `  debootstrap stable root && tar -C root -c . | berth image import --cmd sh - debian:mine
  berth image import --entrypoint /bin/tool root.tar.zst tool:1`,
		Args:        argCount(2, 2),
		Annotations: map[string]string{asRoot: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.imageImport(cmd.Context(), o, args[0], args[1])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.platform, "platform", "", "`OS/ARCH` of the image (default this machine's)")
	flags.VarP(listValue{&o.env, "K=V"}, "env", "e", "variable of the image (repeat)")
	flags.Var(listValue{&o.labels, "K=V"}, "label", "label of the image (repeat)")
	flags.Var(listValue{&o.entrypoint, "WORD"}, "entrypoint", "word of the image's entrypoint (repeat)")
	flags.Var(listValue{&o.cmd, "WORD"}, "cmd", "word of the image's command (repeat)")
	flags.StringVarP(&o.workdir, "workdir", "w", "", "working `DIR` of the image")
	flags.StringVar(&o.user, "user", "", "`UID[:GID]` or name of the image's user")
	flags.StringVar(&o.stopSignal, "stop-signal", "", "`SIGNAL` that asks the image's command to end")
	flags.BoolVar(&o.quiet, "quiet", false, "show no progress")
	o.progress = "auto"
	flags.Var(choiceValue{&o.progress, []string{"auto", "plain", "none"}}, "progress", "how to show the progress of an import that takes more than a second")
	return cmd
}

func (o *imageImportOptions) config() (berth.ImageConfig, error) {
	c := berth.ImageConfig{Env: o.env, Entrypoint: o.entrypoint, Cmd: o.cmd, WorkingDir: o.workdir, User: o.user, StopSignal: o.stopSignal}
	for _, e := range o.env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return c, invalid("image import: --env: %q is no variable: write K=V", e)
		}
	}
	for _, l := range o.labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return c, invalid("image import: --label: %q is no label: write K=V", l)
		}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = v
	}
	return c, nil
}

func (a *app) imageImport(ctx context.Context, o *imageImportOptions, file, name string) error {
	config, err := o.config()
	if err != nil {
		return err
	}
	in := a.in
	if file != "-" {
		f, err := os.Open(a.abs(file))
		if err != nil {
			return &quietError{fmt.Sprintf("image import: %v", err), fileKind(err)}
		}
		defer func() { _ = f.Close() }()
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return invalid("image import: %s is a directory; berth image load reads an OCI layout", file)
		}
		in = io.Reader(f)
	}
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		progress := a.newProgress(o.progress, o.quiet)
		progress.doing, progress.done = "importing", "imported"
		begun := time.Now()
		opts := image.ImportOptions{Platform: o.platform, Config: config, Progress: func(p berth.Progress) {
			if time.Since(begun) > importSilent {
				progress.report(name, p)
			}
		}}
		progress.report(name, berth.Progress{Phase: "resolve"}) // from now on, that nothing comes is told, too
		img, err := images.Import(ctx, in, name, opts)
		if err == nil {
			progress.report(name, berth.Progress{Phase: "done"})
		}
		progress.close()
		if err != nil {
			return ofArchive(err, file, name)
		}
		_, err = fmt.Fprintln(a.out, img.ID)
		return err
	})
}

// ofArchive has an error that is the archive's name that, in place of the image that was to be.
func ofArchive(err error, file, name string) error {
	what, ok := strings.CutPrefix(strings.Replace(err.Error(), "import "+name+": ", "import: ", 1), "import: ")
	if !ok || !errors.Is(err, berth.ErrInvalid) {
		return err
	}
	if file == "-" {
		file = "standard input"
	}
	return &quietError{"image import: " + file + ": " + strings.TrimPrefix(what, "invalid: "), err}
}
