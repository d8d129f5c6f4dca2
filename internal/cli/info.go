package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/internal/cli/userns"
	"github.com/berth-project/berth/ledger"
)

func (a *app) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "info [flags]",
		Short: "Tell what this host offers, and what it lacks",
		Long: `Tell what this host offers: the engine, its runtimes, what tasks can be lent and what is free now; and what it
lacks, each with its remedy.`,
		Example: `  berth info
  berth info --format json`,
		Args:        noArgs,
		Annotations: map[string]string{probes: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.info(cmd.Context(), format) },
	}
	formatFlag(cmd, &format)
	return cmd
}

// probes marks the commands that act as root where they can, and tell why where they cannot.
const probes = "probes the host"

// hostDetails is what info tells.
type hostDetails struct {
	Version  build         `json:"berth"`
	DataDir  string        `json:"data_dir"`
	User     string        `json:"user"` // "root", or how berth becomes root
	Engine   string        `json:"engine"`
	Host     string        `json:"host"`
	Runtimes []string      `json:"runtimes"`
	Total    ledger.Amount `json:"total"`
	Lent     ledger.Amount `json:"lent"`
	Free     ledger.Amount `json:"free"`
	Running  int           `json:"leases"`
	Waiting  int           `json:"waiting"`
	Images   int           `json:"images"`
	Offers   []berth.Offer `json:"offers"`
	Lacks    []berth.Lack  `json:"lacks"`
}

func (a *app) info(ctx context.Context, format string) error {
	h, err := a.openEngine()
	if err != nil {
		return err
	}
	defer h.close()
	d := hostDetails{Version: buildOf(), DataDir: h.dir, Engine: a.global.engine, Offers: []berth.Offer{}, Lacks: []berth.Lack{}, User: "root"}
	info, err := h.engine.Info(ctx)
	if err != nil {
		return err
	}
	d.Host, d.Runtimes = info.Version, info.Runtime
	d.Offers = append(d.Offers, info.Offers...)
	d.Lacks = append(d.Lacks, info.Lacks...)
	slices.SortFunc(d.Lacks, func(x, y berth.Lack) int { return strings.Compare(x.What, y.What) })
	if a.rootless || userns.Needed() {
		a.rootlessDetails(&d)
	}
	if err := a.lent(ctx, h, &d); err != nil {
		return err
	}
	if h.images != nil {
		list, err := h.images.List(ctx)
		if err != nil {
			return err
		}
		d.Images = len(list)
	}
	if format == "json" {
		enc := jsonEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	return a.printInfo(d)
}

// rootlessDetails tells how this user becomes root of a namespace, and what that lacks.
func (a *app) rootlessDetails(d *hostDetails) {
	if a.global.engine == engineDocker { // which has no need of a namespace of berth's
		d.User = "not root"
		return
	}
	d.User = "not root; root of a user namespace"
	if !a.rootless {
		d.User = "not root, and without a user namespace"
		d.Lacks = append(d.Lacks, berth.Lack{
			What: "user namespaces", Why: a.noNamespace, Remedy: "allow them (see berth run for what this host says), or run berth as root",
		})
		return
	}
	if why := a.oneID(); why != "" {
		d.Lacks = append(d.Lacks, berth.Lack{
			What: "more than one user in a container", Why: why,
			Remedy: "as root: apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
		})
	}
}

// oneID says why the namespace maps one id only; "" where it maps more.
func (a *app) oneID() string {
	raw, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || len(strings.Split(strings.TrimSpace(string(raw)), "\n")) > 1 {
		return ""
	}
	return "the user namespace maps this user alone: newuidmap is not there, or /etc/subuid and /etc/subgid give this user no ids"
}

// lent tells what tasks get of what there is, on this machine or the daemon's.
func (a *app) lent(ctx context.Context, h *host, d *hostDetails) error {
	l, err := a.openLedger(h.dir)
	if err != nil {
		return err
	}
	if h.elsewhere != nil {
		h.ledger = l
		if l, err = (&farLedger{h: h, dir: dockerDir(h.dir, a.global.daemon)}).find(ctx); err != nil {
			return err
		}
	}
	s, err := l.Snapshot(ctx)
	if err != nil {
		return err
	}
	d.Total = ledger.Amount{CPU: s.Capacity.CPU, Memory: s.Capacity.Memory, Disk: s.Capacity.Disk}
	d.Lent = s.Lent
	d.Free = ledger.Amount{CPU: d.Total.CPU - s.Lent.CPU, Memory: d.Total.Memory - s.Lent.Memory, Disk: d.Total.Disk - s.Lent.Disk}
	d.Running, d.Waiting = len(s.Leases), len(s.Waiting)
	if s.Capacity.Disk == farDisk {
		d.Total.Disk, d.Free.Disk = 0, 0
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(h.dir, &fs); err != nil {
		return fmt.Errorf("find free disk: statfs %s: %w", h.dir, err)
	}
	d.Free.Disk = min(d.Free.Disk, int64(fs.Bavail)*fs.Bsize) // tasks without a limit and others fill it too
	return nil
}

func (a *app) printInfo(d hostDetails) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-16s%s\n", name, fmt.Sprintf(format, args...))
	}
	line("berth", "%s", dash(d.Version.Version))
	line("data directory", "%s", d.DataDir)
	line("user", "%s", d.User)
	line("engine", "%s: %s", d.Engine, d.Host)
	line("runtimes", "%s", strings.Join(d.Runtimes, ", "))
	for _, o := range d.Offers {
		line(o.What, "%s", o.How)
	}
	line("CPUs", "%.4g, of which %.4g free", d.Total.CPU, d.Free.CPU)
	line("memory", "%s, of which %s free", bytesOf(d.Total.Memory), bytesOf(d.Free.Memory))
	if d.Total.Disk == 0 {
		line("disk", "not known: the daemon does not tell")
	} else {
		line("disk", "%s, of which %s free", bytesOf(d.Total.Disk), bytesOf(d.Free.Disk))
	}
	line("tasks", "%d lent to, %d waiting", d.Running, d.Waiting)
	line("images", "%d", d.Images)
	if len(d.Lacks) == 0 {
		line("lacks", "nothing")
	}
	for i, l := range d.Lacks {
		name := ""
		if i == 0 {
			name = "lacks"
		}
		line(name, "%s: %s", l.What, l.Why)
		line("", "  remedy: %s", l.Remedy)
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}
