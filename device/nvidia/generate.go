package nvidia

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

// Generator writes CDI specs of NVIDIA's devices, with what NVIDIA's own generator puts into them.
type Generator struct {
	Host         *device.Host // of the kernel driver and the device nodes
	Files        *device.Host // of the driver's files, where it is installed in a root of its own; nil for Host
	Hooks        Hooks
	Kind         string   // "" is Kind
	Names        []Names  // nil is by index and by UUID
	LibraryPaths []string // searched first for the driver's libraries

	NoAdditionalGIDs bool
}

// Spec returns a spec of devices that Driver.Devices found on the same host: each GPU, or its slices if it has
// some, under each of its names, and "all". It fails if the driver is not usable: no node of a device or of the
// driver's is there, or its libraries are not those of the running driver. Nothing less would work.
func (g Generator) Spec(devices []device.Device) (*specs.Spec, error) {
	common, err := g.Common()
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{Kind: g.Kind, ContainerEdits: *common}
	if spec.Kind == "" {
		spec.Kind = Kind
	}
	var all specs.ContainerEdits
	for _, d := range devices {
		own, err := g.devices(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		for _, o := range own {
			merge(&all, o.ContainerEdits)
		}
		spec.Devices = append(spec.Devices, own...)
	}
	if len(spec.Devices) == 0 {
		return nil, fmt.Errorf("CDI spec: %w: this host has no NVIDIA GPU that could be in it", berth.ErrNotFound)
	}
	spec.Devices = append(spec.Devices, specs.Device{Name: "all", ContainerEdits: all})
	if spec.Version, err = cdi.MinimumVersion(spec); err != nil {
		return nil, fmt.Errorf("CDI spec: %w", err)
	}
	return spec, nil
}

// devices returns the CDI devices of one GPU; none for one that works in slices alone and has none.
func (g Generator) devices(d device.Device) ([]specs.Device, error) {
	if d.MIG && len(d.Slices) == 0 {
		return nil, nil
	}
	if len(d.Slices) == 0 {
		edits, err := g.GPU(d)
		if err != nil {
			return nil, err
		}
		return g.named(edits, func(n Names) (string, error) { return n.GPU(d.Index, d.UUID) })
	}
	var all []specs.Device
	for _, s := range d.Slices {
		edits, err := g.Slice(d, s)
		if err != nil {
			return nil, fmt.Errorf("MIG slice %d: %w", s.Index, err)
		}
		own, err := g.named(edits, func(n Names) (string, error) { return n.MIG(d.Index, s.Index, CDIName(s.UUID)) })
		if err != nil {
			return nil, err
		}
		all = append(all, own...)
	}
	return all, nil
}

// CDIName returns the name in CDI specs of the device with a UUID. The older form of a slice's UUID has slashes,
// which CDI names cannot have.
func CDIName(uuid string) string { return strings.ReplaceAll(uuid, "/", "-") }

func (g Generator) named(edits *specs.ContainerEdits, name func(Names) (string, error)) ([]specs.Device, error) {
	names := g.Names
	if names == nil {
		names = []Names{ByIndex, ByUUID}
	}
	var devices []specs.Device
	for _, n := range names {
		s, err := name(n)
		if err != nil {
			return nil, err
		}
		devices = append(devices, specs.Device{Name: s, ContainerEdits: *edits})
	}
	return devices, nil
}

// GPU returns the edits for one GPU: its node, and those for graphics that there are, with their links.
func (g Generator) GPU(d device.Device) (*specs.ContainerEdits, error) {
	edits := &specs.ContainerEdits{}
	if err := g.addGPUNode(edits, d); err != nil {
		return nil, err
	}
	drawing := map[string]bool{}
	for _, entry := range g.Host.Glob("/sys/bus/pci/devices/" + d.PCI + "/drm/*") {
		name := path.Base(entry)
		if !strings.HasPrefix(name, "card") && !strings.HasPrefix(name, "renderD") {
			continue
		}
		if err := g.addNode(edits, "/dev/dri/"+name); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		drawing[name] = true
	}
	var links []string
	for _, use := range []string{"card", "render"} {
		link := fmt.Sprintf("/dev/dri/by-path/pci-%s-%s", d.PCI, use)
		if target, err := g.Host.Readlink(link); err == nil && drawing[path.Base(target)] {
			links = append(links, target+"::"+link)
		}
	}
	return edits, g.addHook(edits, hookSymlinks, links...)
}

// Slice returns the edits for one MIG slice: the GPU's node, and those that grant access to the slice.
func (g Generator) Slice(d device.Device, s device.Slice) (*specs.ContainerEdits, error) {
	edits := &specs.ContainerEdits{}
	if err := g.addGPUNode(edits, d); err != nil {
		return nil, err
	}
	text, err := g.Host.ReadFile("/proc/driver/nvidia-caps/mig-minors")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	caps := ParseMIGCaps(string(text))
	instance := fmt.Sprintf("gpu%d/gi%d", d.Minor, s.GI)
	for _, name := range []string{instance + "/access", fmt.Sprintf("%s/ci%d/access", instance, s.CI)} {
		node, err := caps.Node(name)
		if err != nil {
			return nil, err
		}
		if err := g.addNode(edits, node); err != nil {
			return nil, fmt.Errorf("%w: %w; as root, run: nvidia-modprobe -f %s", berth.ErrUnavailable, err, CapFile(name))
		}
	}
	return edits, nil
}

// Common returns the edits for every container that uses the driver. It looks at hundreds of files; what it
// returns stays true as long as the driver's version and its nodes do.
func (g Generator) Common() (*specs.ContainerEdits, error) {
	version, err := NewDriver(g.Host).Version()
	if err == nil && version == "" {
		err = fmt.Errorf("NVIDIA driver: %w: it is not loaded", berth.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	libs, err := findLibraries(g.files(), version, g.LibraryPaths)
	if err != nil {
		return nil, err
	}
	edits := &specs.ContainerEdits{Env: []string{
		"NVIDIA_CTK_LIBCUDA_DIR=" + strings.Join(libs.dirs, ":"),
		// NVIDIA's own runtime, where it is the default, must not add devices to these.
		"NVIDIA_VISIBLE_DEVICES=void",
	}}
	if err := g.addControlNodes(edits); err != nil {
		return nil, err
	}
	g.addFiles(edits, libs)
	return edits, g.addHooks(edits, libs)
}

var controlNodes = []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"}

// addControlNodes adds the nodes that every GPU shares. CUDA works without the last two, which some hosts lack.
func (g Generator) addControlNodes(edits *specs.ContainerEdits) error {
	for i, name := range controlNodes {
		err := g.addNode(edits, name)
		switch {
		case err == nil:
		case i > 1 && errors.Is(err, fs.ErrNotExist):
		default:
			return fmt.Errorf("NVIDIA driver: %w: %w; as root, run: nvidia-modprobe -c 0 -u", berth.ErrUnavailable, err)
		}
	}
	return nil
}

// binaries are the driver's programs that containers use.
var binaries = []string{
	"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server",
	"nvidia-imex", "nvidia-imex-ctl", "nvidia-xconfig",
}

var binaryDirs = []string{
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/nvidia/bin", "/opt/nvidia/bin",
}

// configs are files that libraries for graphics read, by their directory in the container.
var configs = map[string][]string{
	"/usr/share": {
		"glvnd/egl_vendor.d/10_nvidia.json", "egl/egl_external_platform.d/15_nvidia_gbm.json",
		"egl/egl_external_platform.d/10_nvidia_wayland.json", "egl/egl_external_platform.d/09_nvidia_wayland2.json",
		"egl/egl_external_platform.d/20_nvidia_xcb.json", "egl/egl_external_platform.d/20_nvidia_xlib.json",
		"nvidia/nvoptix.bin", "X11/xorg.conf.d/10-nvidia.conf", "X11/xorg.conf.d/nvidia-drm-outputclass.conf",
	},
	"/etc": {
		"OpenCL/vendors/nvidia.icd", "vulkan/icd.d/nvidia_icd.json", "vulkan/icd.d/nvidia_layers.json",
		"vulkan/implicit_layer.d/nvidia_layers.json", "vulkan/icd.d/nvidia_icd.x86_64.json", "vulkan/icd.d/nvidia_icd.aarch64.json",
	},
}

var configDirs = []string{"/etc", "/usr/local/share", "/usr/share"}

// sockets are those of the driver's services.
var (
	sockets    = []string{"nvidia-persistenced/socket", "nvidia-fabricmanager/socket"}
	socketDirs = []string{"/run", "/var/run"}
)

const mpsDir = "nvidia-mps"

func (g Generator) addFiles(edits *specs.ContainerEdits, libs *libraries) {
	h := g.files()
	for _, file := range slices.Concat(libs.files, libs.modules) {
		g.addMount(edits, file, file)
	}
	for _, name := range binaries {
		g.addFirst(edits, "", name, binaryDirs...)
	}
	for _, dir := range firmwareDirs(h) {
		for _, file := range h.Glob(path.Join(dir, "nvidia", libs.version, "gsp*.bin")) {
			g.addMount(edits, file, file)
		}
	}
	for _, to := range []string{"/etc", "/usr/share"} {
		for _, name := range configs[to] {
			g.addFirst(edits, to, name, configDirs...)
		}
	}
	for _, socket := range sockets {
		g.addFirst(edits, "", socket, socketDirs...)
	}
	g.addFirst(edits, "", mpsDir, "/tmp")
}

// firmwareDirs returns where the kernel looks for firmware.
func firmwareDirs(h *device.Host) []string {
	dirs := []string{"/lib/firmware/updates", "/lib/firmware"}
	if custom, err := h.ReadFile("/sys/module/firmware_class/parameters/path"); err == nil {
		if dir := strings.TrimSpace(string(custom)); path.IsAbs(dir) {
			dirs = append([]string{dir}, dirs...)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil && !h.Recorded() {
		release := unix.ByteSliceToString(u.Release[:])
		dirs = append(dirs, "/lib/firmware/updates/"+release, "/lib/firmware/"+release)
	}
	return dirs
}

func (g Generator) addHooks(edits *specs.ContainerEdits, libs *libraries) error {
	if err := g.addHook(edits, hookSymlinks, libs.links()...); err != nil {
		return err
	}
	if err := g.addHook(edits, hookCompat, "--host-driver-version="+libs.version); err != nil {
		return err
	}
	if err := g.addHook(edits, hookLDCache, directories(libs.files)...); err != nil {
		return err
	}
	if err := g.addHook(edits, hookNodes); err != nil {
		return err
	}
	return g.addHook(edits, hookProfile)
}

func (g Generator) addHook(edits *specs.ContainerEdits, name string, args ...string) error {
	hook, err := g.Hooks.New(name, args...)
	if hook != nil {
		edits.Hooks = append(edits.Hooks, hook)
	}
	return err
}

func (g Generator) addGPUNode(edits *specs.ContainerEdits, d device.Device) error {
	majors, err := NewDriver(g.Host).majors()
	if err != nil {
		return err
	}
	node, err := gpuNode(g.Host, majors, d.Minor)
	if err == nil {
		g.append(edits, node)
	}
	return err
}

func (g Generator) addNode(edits *specs.ContainerEdits, name string) error {
	node, err := g.Host.Node(name)
	if err == nil {
		g.append(edits, node)
	}
	return err
}

func (g Generator) append(edits *specs.ContainerEdits, n device.Node) {
	node := g.cdiNode(n)
	edits.DeviceNodes = append(edits.DeviceNodes, node)
	for _, gid := range g.GIDs(node) {
		if !slices.Contains(edits.AdditionalGIDs, gid) {
			edits.AdditionalGIDs = append(edits.AdditionalGIDs, gid)
		}
	}
}

// addFirst adds a mount of the first file with a name beneath some directories, if there is one; at its own
// path, or beneath to.
func (g Generator) addFirst(edits *specs.ContainerEdits, to, name string, dirs ...string) {
	for _, dir := range dirs {
		file := path.Join(dir, name)
		if _, err := g.files().Stat(file); err != nil {
			continue
		}
		at := file
		if to != "" {
			at = path.Join(to, name)
		}
		g.addMount(edits, file, at)
		return
	}
}

func (g Generator) addMount(edits *specs.ContainerEdits, file, at string) {
	if slices.ContainsFunc(edits.Mounts, func(m *specs.Mount) bool { return m.ContainerPath == at }) {
		return
	}
	options := []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}
	if info, err := g.files().Stat(file); err == nil && (info.IsDir() || info.Mode()&fs.ModeSocket != 0) {
		options = []string{"nosuid", "nodev", "rbind", "rprivate", "noexec"} // sockets are written to
	}
	edits.Mounts = append(edits.Mounts, &specs.Mount{HostPath: g.hostPath(g.files(), file), ContainerPath: at, Options: options})
}

func (g Generator) files() *device.Host {
	if g.Files != nil {
		return g.Files
	}
	return g.Host
}

// hostPath returns where a path of h is on this machine; a recorded host speaks of its own paths.
func (g Generator) hostPath(h *device.Host, name string) string {
	if h.Recorded() {
		return name
	}
	return filepath.Join(h.Root(), name)
}

// merge adds to edits what others have and they have not.
func merge(edits *specs.ContainerEdits, others specs.ContainerEdits) {
	for _, n := range others.DeviceNodes {
		if !slices.ContainsFunc(edits.DeviceNodes, func(m *specs.DeviceNode) bool { return m.Path == n.Path }) {
			edits.DeviceNodes = append(edits.DeviceNodes, n)
		}
	}
	for _, h := range others.Hooks {
		if !slices.ContainsFunc(edits.Hooks, func(o *specs.Hook) bool { return slices.Equal(o.Args, h.Args) }) {
			edits.Hooks = append(edits.Hooks, h)
		}
	}
	for _, gid := range others.AdditionalGIDs {
		if !slices.Contains(edits.AdditionalGIDs, gid) {
			edits.AdditionalGIDs = append(edits.AdditionalGIDs, gid)
		}
	}
}
