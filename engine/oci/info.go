package oci

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/network"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// ociRuntimes are the OCI runtimes that hostInfo looks for.
var ociRuntimes = []string{"runc", "crun", "runsc", "kata-runtime", "nvidia-container-runtime"}

// hostInfo says what this host offers and lacks.
func hostInfo(ctx context.Context, cfg Config) (berth.Info, error) {
	info := berth.Info{Name: "oci", Runtime: []string{"direct"}}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return info, fmt.Errorf("sysinfo: %w", err)
	}
	info.Total.Memory = int64(si.Totalram) * int64(si.Unit)
	info.Total.CPU = float64(goruntime.NumCPU())
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Dir, &fs); err == nil {
		info.Total.Disk = int64(fs.Bavail) * fs.Bsize
	}
	for _, name := range ociRuntimes {
		if _, err := exec.LookPath(name); err == nil {
			info.Runtime = append(info.Runtime, name)
		}
	}
	cg, err := cgroup.Find(ctx, cgroup.Options{})
	if err != nil {
		return info, err
	}
	defer func() { _ = cg.Close() }()
	var un unix.Utsname
	_ = unix.Uname(&un)
	controllers := cmp.Or(strings.Join(cg.Controllers(), " "), "no controllers")
	info.Version = fmt.Sprintf("Linux %s, cgroup %s (%s)", unix.ByteSliceToString(un.Release[:]), cg.Version(), controllers)
	if userns.RunningInUserNS() {
		info.Version += ", rootless"
	}
	info.Lacks = append(info.Lacks, cg.Lacks()...)
	info.Offers, info.Lacks = overlay(cfg.Dir, info.Offers, info.Lacks)
	info.Offers, info.Lacks = kernel(info.Offers, info.Lacks)
	nets := network.New(network.Options{Pool: -1})
	lacks := nets.Lacks()
	_ = nets.Close()
	modes := "none, host"
	if !slices.ContainsFunc(lacks, func(l berth.Lack) bool { return l.What == "network mode bridge" }) {
		modes += ", bridge"
	}
	info.Offers = append(info.Offers, berth.Offer{What: "networks", How: modes})
	info.Lacks = append(info.Lacks, lacks...)
	offer, lack := diskLimits(cfg.Dir)
	info.Offers = append(info.Offers, offer)
	if lack.What != "" {
		info.Lacks = append(info.Lacks, lack)
	}
	return info, nil
}

// diskLimits says how disk limits are kept.
func diskLimits(dir string) (offer berth.Offer, lack berth.Lack) {
	offer.What = "disk limits"
	switch way, why := scratch.Way(dir); way {
	case berth.DiskQuota:
		offer.How = "hard, by project quota"
	case berth.DiskLoop:
		offer.How = "hard, by a file system in a file for each task"
	case berth.DiskSampled, berth.DiskNone:
		offer.How = "looked at each second"
		lack = berth.Lack{What: "hard disk limits", Why: why.Error(), Remedy: "run berth as root, with e2fsprogs installed or the data directory on a file system mounted with prjquota"}
	}
	return offer, lack
}

// overlay tells whether containers can have their roots: the kernel's part in that, and the data directory's.
func overlay(dir string, offers []berth.Offer, lacks []berth.Lack) ([]berth.Offer, []berth.Lack) {
	if err := rootfs.HasOverlay(); err != nil {
		return offers, append(lacks, berth.Lack{What: "overlay file system", Why: "no container can start without it", Remedy: rootfs.OverlayRemedy})
	}
	// What is left of a look that was killed the next monitor removes there.
	if err := rootfs.HoldsUppers(filepath.Join(dir, "sandboxes"), userns.RunningInUserNS()); err != nil {
		return offers, append(lacks, berth.Lack{What: "overlay file system in the data directory", Why: "no container can start without it: " + err.Error(), Remedy: rootfs.UpperRemedy})
	}
	return append(offers, berth.Offer{What: "overlay", How: "yes"}), lacks
}

// kernel tells what the embedded engine needs of the kernel, and what of it is lacking.
func kernel(offers []berth.Offer, lacks []berth.Lack) ([]berth.Offer, []berth.Lack) {
	if err := unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		lacks = append(lacks, berth.Lack{
			What: "seccomp", Why: "the kernel was built without it", Remedy: "use a kernel with CONFIG_SECCOMP_FILTER, or --security-opt seccomp=unconfined",
		})
	} else {
		offers = append(offers, berth.Offer{What: "seccomp", How: "yes"})
	}
	var there []string
	var st unix.Stat_t
	for _, ns := range []string{"pid", "net", "ipc", "uts", "mnt", "cgroup", "user"} {
		if err := unix.Stat("/proc/self/ns/"+ns, &st); err != nil {
			lacks = append(lacks, berth.Lack{What: ns + " namespaces", Why: err.Error(), Remedy: "use a kernel that has them"})
		} else {
			there = append(there, ns)
		}
	}
	offers = append(offers, berth.Offer{What: "namespaces", How: strings.Join(there, " ")})
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); err == unix.ENOSYS {
		lacks = append(lacks, berth.Lack{
			What: "mount_setattr", Why: "the kernel is older than Linux 5.12", Remedy: "use a newer kernel, or --runtime runc",
		})
	}
	return offers, lacks
}
