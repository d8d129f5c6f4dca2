package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/inject"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
)

type cdiGenerateOptions struct {
	root, vendor, output, format, hook string
	noGroups, mei                      bool
}

func (a *app) cdiGenerateCommand() *cobra.Command {
	o := &cdiGenerateOptions{}
	cmd := &cobra.Command{
		Use:   "generate [flags]",
		Short: "Write CDI specs of this host's GPUs",
		Long: `Write CDI specs of this host's GPUs: nvidia.com/gpu by index and by UUID, amd.com/gpu by index, intel.com/gpu by address,
and all of NVIDIA's and of AMD's. With several vendors, standard output has a YAML document for each; a file is of one
vendor. A spec is written at the lowest version of CDI that has all it uses, and only if the GPUs can be used: no node,
driver or library is missing.

The hooks of specs of NVIDIA's GPUs are berth-cdi-hook, which lies beside berth, and on a recorded host in
/usr/local/bin; --hook names another place.`,
		Example: `  berth cdi generate
  berth cdi generate --vendor nvidia --output /etc/cdi/nvidia.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.cdiGenerate(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.Var(choiceValue{&o.vendor, []string{nvidia.Vendor, "amd", "intel"}}, "vendor", "only this vendor's")
	flags.StringVarP(&o.output, "output", "o", stdStream, "write to this `FILE`; - is standard output")
	flags.Var(choiceValue{&o.format, []string{"yaml", "json"}}, "format", "yaml or json (default by the name of the file, else yaml)")
	flags.StringVar(&o.hook, "hook", "", "absolute `PATH` of berth-cdi-hook, as container runtimes find it")
	flags.BoolVar(&o.noGroups, "no-groups", false, "leave out the groups of nodes that not everybody may open, which readers of CDI before 0.7 do not know")
	flags.BoolVar(&o.mei, "mei", false, "write intel.com/gpu-mei instead: the management interfaces of Intel's GPUs, by which their firmware is updated")
	rootFlag(cmd, &o.root)
	return cmd
}

func (a *app) cdiGenerate(ctx context.Context, o *cdiGenerateOptions) error {
	h, err := a.openHost(o.root)
	if err != nil {
		return err
	}
	if o.mei {
		return a.cdiGenerateMEI(ctx, h, o)
	}
	found, err := a.findGPUs(ctx, h)
	if err != nil {
		return err
	}
	host := inject.Host{Host: h, Devices: found.devices, NoGroups: o.noGroups}
	vendors := host.Vendors()
	if o.vendor != "" {
		vendors = []string{o.vendor}
	}
	switch {
	case len(vendors) == 0:
		return fmt.Errorf("CDI spec: %w: this host has no GPU that could be in it", berth.ErrNotFound)
	case len(vendors) > 1 && o.output != stdStream:
		return invalid("cdi generate: --output: this host has GPUs of %s, and a file has those of one vendor; give --vendor", strings.Join(vendors, " and "))
	}
	data, err := device.Within(ctx, a.patience, "a driver of GPUs", func() ([]byte, error) { return a.generate(host, vendors, o) })
	if err != nil {
		return err
	}
	for _, note := range found.notes() {
		a.say("%s", note)
	}
	return a.writeTo(o.output, data)
}

func (a *app) cdiGenerateMEI(ctx context.Context, h *device.Host, o *cdiGenerateOptions) error {
	if o.vendor != "" && o.vendor != intel.Vendor {
		return invalid("cdi generate: --mei: the GPUs of %s have no such interface", o.vendor)
	}
	spec, err := device.Within(ctx, a.patience, "the driver of "+intel.Vendor, func() (*specs.Spec, error) {
		return intel.Generator{Host: h, Groups: !o.noGroups}.MEI(intel.Find(h))
	})
	if err != nil {
		return err
	}
	marshal, _ := o.marshal()
	data, err := marshal(spec)
	if err != nil {
		return err
	}
	return a.writeTo(o.output, data)
}

// marshal is how specs are written, and what stands between them.
func (o *cdiGenerateOptions) marshal() (marshal func(*specs.Spec) ([]byte, error), between string) {
	if o.format == "json" || o.format == "" && filepath.Ext(o.output) == ".json" {
		return cdi.MarshalJSON, ""
	}
	return cdi.Marshal, "---\n"
}

// generate writes the specs of vendors: YAML documents, or a JSON object a vendor.
func (a *app) generate(host inject.Host, vendors []string, o *cdiGenerateOptions) ([]byte, error) {
	marshal, between := o.marshal()
	var out []byte
	for i, vendor := range vendors {
		if vendor == nvidia.Vendor {
			hook, err := hookProgram(o.hook, host.Host)
			if err != nil {
				return nil, err
			}
			host.Hooks.Path = hook
		}
		spec, err := host.Generate(vendor)
		if err != nil {
			return nil, err
		}
		data, err := marshal(spec)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out = append(out, between...)
		}
		out = append(out, data...)
	}
	return out, nil
}

// hookName is the program with the hooks of CDI specs.
const hookName = "berth-cdi-hook"

// hookProgram is the absolute path of the program with the hooks: the one that was named, the one beside berth, or
// one in the path. Another host than this one is taken to have it where berth would be installed.
func hookProgram(named string, h *device.Host) (string, error) {
	if named != "" {
		if !filepath.IsAbs(named) {
			return "", invalid("--hook: %s is no absolute path; container runtimes search none", named)
		}
		return named, nil
	}
	if h.Root() != "/" {
		return "/usr/local/bin/" + hookName, nil
	}
	path, err := hookHere()
	if err != nil {
		return "", fmt.Errorf("%w, or name it with --hook", err)
	}
	return path, nil
}

// hookHere is the program of the hooks on this machine, whatever host's devices are lent.
func hookHere() (string, error) {
	place := "a directory of the path"
	if exe, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(exe), hookName)
		if isFile(beside) {
			return beside, nil
		}
		place = beside
	}
	if path, err := exec.LookPath(hookName); err == nil && filepath.IsAbs(path) {
		return path, nil
	}
	return "", fmt.Errorf("%s: %w: neither beside berth nor in the path; build it with: CGO_ENABLED=0 go build ./cmd/%s, and install it as %s", hookName, berth.ErrNotFound, hookName, place)
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
