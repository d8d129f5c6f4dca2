package device_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/require"
)

// nvidiaSuites are the suites of device/nvidia and device/require.
var nvidiaSuites = nothingBesideErrors(map[string]suite{
	"nct.additional_gids":            nctAdditionalGIDs,
	"nct.annotations":                nctAnnotations,
	"nct.cdi_requests":               nctCDIRequests,
	"nct.config":                     nctConfig,
	"nct.config_file.supported_caps": nctConfigFile,
	"nct.cuda_version":               nctCUDAVersion,
	"nct.disable_require":            nctDisableRequire,
	"nct.driver_caps.effective":      nctCapsEffective,
	"nct.driver_caps.intersection":   nctCapsIntersection,
	"nct.driver_caps.parse":          nctCapsParse,
	"nct.env_parse":                  nctEnvParse,
	"nct.imex.env":                   nctIMEXEnv,
	"nct.imex.requests":              nctIMEXRequests,
	"nct.mode_identifiers":           nctModeIdentifiers,
	"nct.privileged":                 nctPrivileged,
	"nct.require.eval":               nctRequireEval,
	"nct.require.logic":              nctRequireLogic,
	"nct.require.parse":              nctRequireParse,
	"nct.require.parse_term":         nctRequireParseTerm,
	"nct.requirements.collect":       nctRequirementsCollect,
	"nct.runtime_mode":               nctRuntimeMode,
	"nct.visible_devices":            nctVisibleDevices,
	"nct.visible_devices.env":        nctVisibleDevicesEnv,
	"nct.visible_devices.mounts":     nctVisibleDevicesMounts,
	"nv.identifier_kind":             nvIdentifierKind,
	"nv.mig_cap_proc_path":           nvMIGCapProcPath,
	"nv.mig_minors_file":             nvMIGMinorsFile,
	"nv.mig_minors_line":             nvMIGMinorsLine,
	"nv.proc_devices":                nvProcDevices,
	"nv.proc_gpu_information":        nvProcGPUInformation,
	"nvc.select_devices":             nvcSelectDevices,
	"nvcdi.device_names":             nvcdiDeviceNames,
	"nvcdi.hook_args":                nvcdiHookArgs,
	"nvcdi.imex.channel_ids":         nvcdiIMEXChannelIDs,
})

// nothingBesideErrors drops what operations of these suites return with an error: the cases expect nothing.
func nothingBesideErrors(suites map[string]suite) map[string]suite {
	for name, run := range suites {
		suites[name] = func(t *testing.T, input json.RawMessage) (any, error) {
			out, err := run(t, input)
			if err != nil {
				out = nil
			}
			return out, err
		}
	}
	return suites
}

// result is what a case expects, by its keys.
type result = map[string]any

// nctInput holds the fields of all those suites that begin with a container.
type nctInput struct {
	AcceptEnv     *bool             `json:"accept_envvar_unprivileged"`
	AcceptMounts  bool              `json:"accept_volume_mounts"`
	Prefixes      []string          `json:"annotation_prefixes"`
	Annotations   map[string]string `json:"annotations"`
	Env           json.RawMessage   `json:"env"`
	Mounts        []specs.Mount     `json:"mounts"`
	DevNullMounts []string          `json:"dev_null_mounts"`
	Privileged    bool              `json:"privileged"`
	Preferred     []string          `json:"preferred_envvars"`
	IgnoreIMEX    bool              `json:"ignore_imex"`
	Supported     string            `json:"supported_driver_capabilities"`
	Swarm         string            `json:"swarm_resource"`
	DefaultKind   string            `json:"default_kind"`
	Mode          string            `json:"mode"`
	DefaultMode   nvidia.Mode       `json:"default_mode"`
	Platform      nvidia.Platform   `json:"platform"`
}

func readContainer(t *testing.T, input json.RawMessage) (nctInput, nvidia.Config, nvidia.Container, error) {
	in := decode[nctInput](t, input)
	cfg := nvidia.DefaultConfig()
	cfg.AcceptMounts = in.AcceptMounts
	if in.AcceptEnv != nil {
		cfg.AcceptEnvUnprivileged = *in.AcceptEnv
	}
	cfg.Runtime.Modes.CDI.AnnotationPrefixes = in.Prefixes
	cfg.SwarmResource = strings.Join(in.Preferred, ",") + in.Swarm
	cfg.Features.IgnoreIMEX = in.IgnoreIMEX
	cfg.SupportedCapabilities = in.Supported
	c := nvidia.Container{Mounts: in.Mounts, Annotations: in.Annotations, Privileged: in.Privileged}
	for _, destination := range in.DevNullMounts {
		c.Mounts = append(c.Mounts, specs.Mount{Source: "/dev/null", Destination: destination})
	}
	env, err := readEnv(t, in.Env)
	c.Env = env
	return in, cfg, c, err
}

// readEnv takes an environment in either of the forms that the cases have.
func readEnv(t *testing.T, data json.RawMessage) (map[string]string, error) {
	if len(data) > 0 && data[0] == '[' {
		return nvidia.ParseEnv(decode[[]string](t, data))
	}
	if len(data) == 0 {
		return nil, nil
	}
	return decode[map[string]string](t, data), nil
}

func nctConfig(t *testing.T, input json.RawMessage) (any, error) {
	_, cfg, c, err := readContainer(t, input)
	if err != nil {
		return nil, err
	}
	r, err := cfg.Request(c)
	if r == nil || err != nil {
		return result{"gpu_container": false}, err
	}
	return result{
		"gpu_container": true, "devices": r.Devices.IDs, "mig_config_devices": r.MIGConfig, "mig_monitor_devices": r.MIGMonitor,
		"driver_capabilities": r.Capabilities.String(), "requirements_unordered": r.Requirements,
	}, nil
}

func nctVisibleDevices(t *testing.T, input json.RawMessage) (any, error) {
	_, cfg, c, err := readContainer(t, input)
	ids := cfg.VisibleDevices(c).IDs
	out := result{"devices": ids}
	if _, ok := decode[map[string]any](t, input)["annotation_prefixes"]; ok {
		out["only_qualified_cdi"] = nvidia.Platform{}.Resolve("auto", ids, nvidia.ModeJIT) == nvidia.ModeCDI
	}
	return out, err
}

func nctVisibleDevicesEnv(t *testing.T, input json.RawMessage) (any, error) {
	_, cfg, c, err := readContainer(t, input)
	return result{"devices": cfg.VisibleDevices(c).IDs}, err
}

func nctVisibleDevicesMounts(t *testing.T, input json.RawMessage) (any, error) {
	_, cfg, c, err := readContainer(t, input)
	cfg.AcceptMounts = true
	return result{"devices": cfg.VisibleDevices(c).IDs}, err
}

func nctAnnotations(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Annotations map[string]string
		Prefixes    []string
	}](t, input)
	cfg := nvidia.DefaultConfig()
	cfg.Runtime.Modes.CDI.AnnotationPrefixes = in.Prefixes
	return result{"devices_unordered": cfg.VisibleDevices(nvidia.Container{Annotations: in.Annotations}).IDs}, nil
}

func nctCDIRequests(t *testing.T, input json.RawMessage) (any, error) {
	in, cfg, c, err := readContainer(t, input)
	return result{"devices": nvidia.Qualify(cfg.VisibleDevices(c).IDs, in.DefaultKind)}, err
}

func nctIMEXEnv(t *testing.T, input json.RawMessage) (any, error) {
	_, cfg, c, err := readContainer(t, input)
	return result{"channels": cfg.IMEXChannels(c)}, err
}

func nctIMEXRequests(t *testing.T, input json.RawMessage) (any, error) { return nctIMEXEnv(t, input) }

func nctRuntimeMode(t *testing.T, input json.RawMessage) (any, error) {
	in, cfg, c, err := readContainer(t, input)
	cfg.AcceptMounts = true
	other := nvidia.ModeJIT
	if in.DefaultMode != "" {
		other = in.DefaultMode
	}
	return result{"mode": in.Platform.Resolve(in.Mode, cfg.VisibleDevices(c).IDs, other)}, err
}

func nctModeIdentifiers(t *testing.T, input json.RawMessage) (any, error) {
	m := nvidia.ByMode(decode[struct{ Devices []string }](t, input).Devices)
	return result{"modes": m.Order, "ids_by_mode": m.IDs}, nil
}

func nctConfigFile(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Lines   []string `json:"toml_lines"`
		Present *bool    `json:"file_present"`
	}](t, input)
	file := filepath.Join(t.TempDir(), "config.toml")
	if in.Present == nil || *in.Present {
		if err := os.WriteFile(file, []byte(strings.Join(in.Lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := nvidia.ReadConfig(file)
	if errors.Is(err, berth.ErrNotFound) {
		cfg, err = nvidia.DefaultConfig(), nil
	}
	return result{"supported_driver_capabilities": cfg.SupportedCapabilities}, err
}

func nctPrivileged(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Version      string `json:"oci_version"`
		Capabilities json.RawMessage
	}](t, input)
	privileged, err := nvidia.Privileged(in.Version, in.Capabilities)
	return result{"privileged": privileged}, err
}

func nctEnvParse(t *testing.T, input json.RawMessage) (any, error) {
	env, err := nvidia.ParseEnv(decode[struct{ Env []string }](t, input).Env)
	return result{"map": env}, err
}

func nctDisableRequire(t *testing.T, input json.RawMessage) (any, error) {
	env := map[string]string{}
	for name, value := range decode[map[string]*string](t, input) {
		if value != nil {
			env[name] = *value
		}
	}
	return result{"disabled": nvidia.Container{Env: env}.RequireDisabled()}, nil
}

func nctRequirementsCollect(t *testing.T, input json.RawMessage) (any, error) {
	_, _, c, err := readContainer(t, input)
	if err != nil {
		return nil, err
	}
	requirements, err := c.Requirements()
	return result{"requirements_unordered": requirements}, err
}

func nctCUDAVersion(t *testing.T, input json.RawMessage) (any, error) {
	v, err := require.MajorMinor(decode[struct{ Version string }](t, input).Version)
	return result{"major_minor": v}, err
}

func nctCapsParse(t *testing.T, input json.RawMessage) (any, error) {
	return result{"list": nvidia.ParseCapabilities(decode[struct{ Value string }](t, input).Value)}, nil
}

func nctCapsIntersection(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct{ Capabilities, Supported []string }](t, input)
	supported := nvidia.ParseCapabilities(in.Supported...)
	return result{"result": supported.Intersect(nvidia.ParseCapabilities(in.Capabilities...))}, nil
}

func nctCapsEffective(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Env       map[string]string
		Legacy    bool `json:"legacy_image"`
		Supported string
	}](t, input)
	if in.Env == nil {
		in.Env = map[string]string{}
	}
	if in.Legacy {
		in.Env["CUDA_VERSION"] = "9.0"
	}
	in.Env["NVIDIA_VISIBLE_DEVICES"] = "all"
	r, err := nvidia.Config{AcceptEnvUnprivileged: true, SupportedCapabilities: in.Supported}.Request(nvidia.Container{Env: in.Env})
	if err != nil {
		return nil, err
	}
	return result{"capabilities": r.Capabilities.String()}, nil
}

func nctRequireEval(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Requirements []string
		Host         require.Host
	}](t, input)
	err := require.CheckAll(in.Requirements, in.Host)
	unmet := new(require.Unmet)
	switch {
	case err == nil:
		return result{"result": "satisfied"}, nil
	case errors.As(err, &unmet):
		return result{"result": "unsatisfied"}, nil
	}
	return result{"result": "invalid"}, nil
}

// constant is an expression that always, or never, holds.
type constant bool

func (c constant) Holds(require.Host) (bool, error) { return bool(c), nil }
func (c constant) String() string                   { return strconv.FormatBool(bool(c)) }

func nctRequireLogic(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Op       string
		Operands []bool
	}](t, input)
	var operands []require.Expression
	for _, o := range in.Operands {
		operands = append(operands, constant(o))
	}
	var e require.Expression = require.All(operands)
	if in.Op == "or" {
		e = require.Any(operands)
	}
	holds, err := e.Holds(require.Host{})
	return result{"result": holds}, err
}

func knownProperties(names []string) map[string]require.Kind {
	known := map[string]require.Kind{}
	for _, name := range names {
		known[name] = require.Known[name]
	}
	return known
}

func nctRequireParse(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Known       []string `json:"known_properties"`
		Requirement string
	}](t, input)
	e, err := require.Parse(in.Requirement, knownProperties(in.Known))
	if e == nil {
		return result{"ignored": true}, err
	}
	top := "binary"
	switch e.(type) {
	case require.All:
		top = "and"
	case require.Any:
		top = "or"
	}
	return result{"expression": e.String(), "top": top}, err
}

func nctRequireParseTerm(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Known []string `json:"version_properties"`
		Term  string
	}](t, input)
	term, err := require.ParseTerm(in.Term, knownProperties(in.Known))
	switch {
	case err != nil:
		return nil, err
	case term == nil:
		return result{"ignored": true}, nil
	}
	return result{"property": term.Property, "operator": term.Operator, "value": term.Value}, nil
}

func nvIdentifierKind(t *testing.T, input json.RawMessage) (any, error) {
	return result{"kind": nvidia.KindOf(decode[struct{ ID string }](t, input).ID)}, nil
}

func nvMIGCapProcPath(t *testing.T, input json.RawMessage) (any, error) {
	return result{"proc_path": nvidia.CapFile(decode[struct{ Cap string }](t, input).Cap)}, nil
}

func nvMIGMinorsFile(t *testing.T, input json.RawMessage) (any, error) {
	lines := decode[struct{ Lines []string }](t, input).Lines
	return result{"caps": nvidia.ParseMIGCaps(strings.Join(lines, "\n"))}, nil
}

func nvMIGMinorsLine(t *testing.T, input json.RawMessage) (any, error) {
	caps := nvidia.ParseMIGCaps(decode[struct{ Line string }](t, input).Line)
	for name, minor := range caps {
		node, err := caps.Node(name)
		return result{"cap": name, "minor": minor, "device_path": node}, err
	}
	return nil, errors.New("the line is not understood")
}

func nvProcDevices(t *testing.T, input json.RawMessage) (any, error) {
	majors, err := nvidia.ParseMajors(strings.Join(decode[struct{ Lines []string }](t, input).Lines, "\n"))
	return result{"majors": majors}, err
}

func nvProcGPUInformation(t *testing.T, input json.RawMessage) (any, error) {
	i := nvidia.ParseInformation(decode[struct{ Text string }](t, input).Text)
	return result{"model": i.Model, "uuid": i.UUID, "bus": i.Bus, "minor": i.Minor}, nil
}

func nvcSelectDevices(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Inventory struct {
			GPUs []struct {
				Index     int
				UUID, Bus string
				MIGs      []struct {
					Index int
					UUID  string
				}
			}
		}
		Devices string
	}](t, input)
	var devices []device.Device
	for _, g := range in.Inventory.GPUs {
		d := device.Device{Vendor: nvidia.Vendor, Index: g.Index, UUID: g.UUID, PCI: g.Bus}
		for _, m := range g.MIGs {
			d.Slices = append(d.Slices, device.Slice{Index: m.Index, UUID: m.UUID})
		}
		devices = append(devices, d)
	}
	s, err := nvidia.Select(devices, in.Devices)
	var migs []string
	for _, at := range s.Slices {
		migs = append(migs, fmt.Sprintf("%d:%d", at[0], at[1]))
	}
	return result{"gpus": s.GPUs, "migs": migs}, err
}

func nctAdditionalGIDs(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Node *struct {
			GID         *uint32
			Permissions string `json:"permissions_octal"`
		} `json:"device_node"`
		None bool `json:"no_additional_gids"`
	}](t, input)
	var node *cdispecs.DeviceNode
	if in.Node != nil {
		node = &cdispecs.DeviceNode{GID: in.Node.GID}
		if in.Node.Permissions != "" {
			mode, err := strconv.ParseUint(in.Node.Permissions, 8, 32)
			if err != nil {
				t.Fatal(err)
			}
			m := fs.FileMode(mode)
			node.FileMode = &m
		}
	}
	return result{"additional_gids": nvidia.Generator{NoAdditionalGIDs: in.None}.GIDs(node)}, nil
}

func nvcdiDeviceNames(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Strategy nvidia.Names
		GPUIndex int    `json:"gpu_index"`
		GPUUUID  string `json:"gpu_uuid"`
		MIGIndex int    `json:"mig_index"`
		MIGUUID  string `json:"mig_uuid"`
	}](t, input)
	gpu, err := in.Strategy.GPU(in.GPUIndex, in.GPUUUID)
	if err != nil {
		return nil, err
	}
	mig, err := in.Strategy.MIG(in.GPUIndex, in.MIGIndex, in.MIGUUID)
	return result{"gpu": gpu, "mig": mig}, err
}

func nvcdiHookArgs(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Hook string
		Path string `json:"hook_path"`
	}](t, input)
	hook, err := nvidia.Hooks{Path: in.Path, Enabled: []string{"chmod"}}.New(in.Hook, "argument")
	if err != nil {
		return nil, err
	}
	prefix := hook.Args[:1]
	for _, arg := range hook.Args[1:] {
		prefix = append(prefix, arg)
		if arg == in.Hook {
			break
		}
	}
	return result{"hook_name": hook.HookName, "path": hook.Path, "args_prefix": prefix}, nil
}

func nvcdiIMEXChannelIDs(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Existing []int `json:"existing_channels"`
		IDs      []string
	}](t, input)
	root := t.TempDir()
	var nodes strings.Builder
	for _, n := range in.Existing {
		fmt.Fprintf(&nodes, "c 235:%d 0666 0:0 /dev/nvidia-caps-imex-channels/channel%d\n", n, n)
	}
	if err := os.WriteFile(filepath.Join(root, device.NodeList), []byte(nodes.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nvidia.Channels(host, in.IDs...)
	return nil, err
}
