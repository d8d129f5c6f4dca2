package oci_test

import (
	"maps"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/enginetest/nested"
	"github.com/berth-project/berth/engine/oci/vmtest"
)

// core names the checks of what a runtime and the kind of cgroups have a part in; they are few, as an OCI
// runtime takes seconds to start under emulation.
const core = "/^(end_by_signal|stop_ends_everything|terminal|out_of_memory|out_of_memory_in_a_child|pids_limit|" +
	"pids_are_limited_by_default|usage_while_it_runs|exec|exec_that_ends_otherwise|own_namespaces|devices|read-only_paths|cgroup|lent_device_and_no_other|lent_device_of_a_group|hooks_of_lent_devices|hook_that_fails)$"

// onV2Core names what OCI runtimes run of core in the machine: what the kind of cgroups has a part in.
// TestCgroupOfContainer looks at limits and devices with each of them.
const onV2Core = "/^(stop_ends_everything|out_of_memory|pids_limit|usage_while_it_runs|exec_that_ends_otherwise|cgroup|lent_device_and_no_other|container_that_differs_from_its_grants)$"

// elsewhere names what the machine does not run direct: it moves bytes, keeps logs, or tells exits, in which neither the
// kind of cgroups nor the kernel has a part, and takes seconds each under emulation. TestSuite runs it on this host.
const elsewhere = "/^(output_at_full_speed|output_is_complete_at_the_end|output_stays_apart_between_containers|" +
	"logs_are_bounded|logs_of_a_flood|logs_of_a_flood_that_are_held|logs_wait_for_their_readers|logs_since_a_time|" +
	"exit_codes|command_not_there|command_cannot_be_run|times_of_the_exit|wait_ends_with_its_context)$"

// TestOnV2 runs the suite where cgroups are of v2 alone: direct, as root, all of it but what is named by elsewhere; as an
// ordinary user the core; OCI runtimes less, as all of it would take many minutes under emulation.
func TestOnV2(t *testing.T) {
	t.Parallel() // with the other machine: each keeps one core busy for minutes
	inMachine(t, machine(t, runtime.GOARCH),
		[]string{"oci.test", "-test.v", "-test.run=^TestSuite$/^direct$", "-test.skip=^TestSuite$/^direct$" + elsewhere},
		[]string{"oci.test", "-test.v", "-test.run=^TestSuite$/^(runc|crun)$" + onV2Core},
		[]string{"oci.test", "-test.v", "-test.run=^(TestCgroupOfContainer|TestSuiteRootless|TestNodesOfImage|TestNodesOfImageWithoutRules)$"},
	)
}

// TestOnARM64 runs on the other architecture, direct: as root, what most depends on it, which is a part of the core.
// With BERTH_TEST_ARM64=core it runs all of that, as root and as an ordinary user, which takes minutes.
func TestOnARM64(t *testing.T) {
	t.Parallel()
	commands := [][]string{
		{"oci.test", "-test.v", "-test.run=^TestSuite$/^direct$/^(end_by_signal|terminal|out_of_memory|pids_limit|exec|own_namespaces|cgroup)$"},
		{"oci.test", "-test.v", "-test.run=^TestCgroupOfContainer$/^direct$"},
	}
	if os.Getenv("BERTH_TEST_ARM64") == "core" {
		commands = [][]string{
			{"oci.test", "-test.v", "-test.run=^(TestSuite|TestCgroupOfContainer)$/^direct$" + core},
			{"oci.test", "-test.v", "-test.run=^TestSuiteRootless$"},
		}
	}
	inMachine(t, machine(t, "arm64"), commands...)
}

// machine is a virtual machine that has what containers need, and this package's tests as oci.test. Its
// containers lie on a disk, and it has an address that containers reach it by. Of this host's architecture it has
// OCI runtimes too.
func machine(t *testing.T, arch string) vmtest.Config {
	t.Helper()
	cfg := vmtest.Config{
		Arch:    arch,
		Files:   map[string]string{"/bin/oci.test": vmtest.BuildFor(t, arch, ".")},
		Env:     []string{"TMPDIR=/mnt"},
		Disk:    1 << 30,
		Modules: append(vmtest.DefaultModules(), "virtio_pci", "virtio_blk", "ext4"),
		Timeout: 30 * time.Minute, // on a slow machine that has other work too
		Commands: [][]string{
			{"sh", "-c", `mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt && chmod 1777 /mnt &&
				echo nameserver 198.51.100.2 >/etc/resolv.conf && ip addr add 198.51.100.1/24 dev dummy0 && ip link set dummy0 up &&
				ip route add default via 198.51.100.2`},
		},
	}
	if arch != runtime.GOARCH {
		return cfg
	}
	for _, name := range []string{"runc", "crun", "mkfs.ext4"} {
		maps.Copy(cfg.Files, vmtest.Program(t, name))
	}
	return cfg
}

// inMachine runs test binaries in the machine, and makes their tests subtests of t.
func inMachine(t *testing.T, cfg vmtest.Config, commands ...[]string) {
	t.Helper()
	cfg.Commands = append(cfg.Commands, commands...)
	r := vmtest.Run(t, cfg)
	if r.Status[0] != 0 {
		t.Fatalf("the machine is not as it should be:\n%s", r.Output)
	}
	nested.Report(t, r.Output)
	for i, status := range r.Status[1:] {
		if status != 0 && !t.Failed() {
			t.Errorf("%v ended with %d\n%s", commands[i], status, r.Output)
		}
	}
}
