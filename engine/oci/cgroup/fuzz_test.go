package cgroup

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/program"
)

func FuzzMounts(f *testing.F) {
	f.Add("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "1:cpu:/x\n0::/\n")
	f.Add(`40 23 0:38 /a\040b /sys/fs/cg\134roup rw shared:4 - cgroup2 cgroup2 rw`, "0::/../a\n")
	f.Fuzz(func(t *testing.T, mounts, own string) {
		for _, h := range parseMounts([]byte(mounts), []byte(own)) {
			if h.own == "" || h.own[0] != '/' || strings.Contains(h.own+"/", "/../") {
				t.Errorf("own cgroup %q", h.own)
			}
		}
	})
}

func FuzzFigures(f *testing.F) {
	f.Add("8:0 Read 4096\n8:0 Write 1\n8:0 Total 4097\nTotal 4097\n")
	f.Add("8:0 rbytes=4096 wbytes=1 rios=2\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func([]byte) map[string]moved{parseBlkio, parseIOStat} {
			for dev := range parse([]byte(s)) {
				if dev == "" || strings.ContainsAny(dev, " \n") {
					t.Errorf("device %q", dev)
				}
			}
		}
		_, _ = parseInt([]byte(s))
		_ = parseIDMaps(s)
	})
}

// The program that the kernel runs says the same as the rules.
func FuzzRules(f *testing.F) {
	f.Add("c", int64(1), int64(3), "rw", "b", int64(-1), int64(-1), "m", true, uint8(2), uint32(1), uint32(3))
	f.Add("a", int64(-1), int64(-1), "rwm", "c", int64(10), int64(229), "", false, uint8(6), uint32(10), uint32(229))
	f.Fuzz(func(t *testing.T, t1 string, maj1, min1 int64, acc1, t2 string, maj2, min2 int64, acc2 string, block bool, acc uint8, major, minor uint32) {
		acc &= uint8(anyAccess)
		set, err := parseRules([]specs.LinuxDeviceCgroup{
			{Allow: true, Type: t1, Major: &maj1, Minor: &min1, Access: acc1},
			{Allow: true, Type: t2, Major: &maj2, Minor: &min2, Access: acc2},
		})
		if err != nil || acc == 0 {
			return
		}
		want := set.all
		for _, r := range set.list {
			want = want || (r.typ == 'a' || (r.typ == 'b') == block) && (r.major < 0 || r.major == int64(major)) &&
				(r.minor < 0 || r.minor == int64(minor)) && access(acc)&^r.access == 0
		}
		use := program.Use{Type: unix.BPF_DEVCG_DEV_CHAR, Access: uint16(acc), Major: major, Minor: minor}
		if block {
			use.Type = unix.BPF_DEVCG_DEV_BLOCK
		}
		code, err := program.Parse(assemble(set.program()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := code.Allows(use); err != nil || got != want && !set.all {
			t.Errorf("rules %v: %+v: %v, %v, want %v", set.list, use, got, err, want)
		}
	})
}

func TestMountsOfHosts(t *testing.T) {
	type place struct {
		mount, own string
		v2         bool
	}
	for _, c := range []struct {
		name, mounts, own string
		version           Version
		want              []place
	}{
		{
			"hybrid, own cgroup", "32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n",
			"4:memory:/job/7\n2:name=systemd:/\n0::/init.scope\n", Hybrid,
			[]place{{"/sys/fs/cgroup/memory", "/job/7", false}, {"/sys/fs/cgroup/systemd", "/", false}, {"/sys/fs/cgroup/unified", "/init.scope", true}},
		},
		{
			"v1, several controllers in one", "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu\n", "3:cpu,cpuacct:/a\n", V1,
			[]place{{"/sys/fs/cgroup/cpu,cpuacct", "/a", false}},
		},
		{
			"an option of a security module", "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,seclabel,memory\n", "4:memory:/job/7\n", V1,
			[]place{{"/sys/fs/cgroup/memory", "/job/7", false}},
		},
		{
			"v2 with systemd's own v1", "33 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "0::/\n", V2,
			[]place{{"/sys/fs/cgroup/systemd", "/", false}, {"/sys/fs/cgroup/unified", "/", true}},
		},
		{
			"container without a cgroup namespace", "50 40 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", "4:memory:/docker/abc\n", V1,
			[]place{{"/sys/fs/cgroup/memory", "/", false}},
		},
		{
			"outside the mounted part", "50 40 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/../../other\n", V2,
			[]place{{"/sys/fs/cgroup", "/", true}},
		},
		{
			"hidden by a later mount", "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n60 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/x\n", V2,
			[]place{{"/sys/fs/cgroup", "/x", true}},
		},
		{
			"mounted twice", "50 40 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n51 40 0:38 / /mnt/cg rw - cgroup2 cgroup2 rw\n", "0::/x\n", V2,
			[]place{{"/sys/fs/cgroup", "/x", true}},
		},
		{"none", "27 1 254:0 / / rw - ext4 /dev/vda rw\n", "", None, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := parseMounts([]byte(c.mounts), []byte(c.own))
			var got []place
			for _, h := range found {
				got = append(got, place{h.mount, h.own, h.v2})
			}
			if !slices.Equal(got, c.want) || versionOf(found) != c.version {
				t.Errorf("%+v %s, want %+v %s", got, versionOf(found), c.want, c.version)
			}
		})
	}
}

func TestQuota(t *testing.T) {
	for _, c := range []struct {
		cores         float64
		quota, period int64
	}{
		{0.01, 1000, 100_000},
		{0.5, 50_000, 100_000},
		{1.5, 150_000, 100_000},
		{0.333, 33_300, 100_000},
		{1.000004, 250_001, 250_000},
		{0.012345, 2_469, 200_000},
		{1.0 / 3, 33_333, 100_000},
		{64, 6_400_000, 100_000},
	} {
		if q, p := quota(c.cores); q != c.quota || p != c.period {
			t.Errorf("%v cores: %d in %d, want %d in %d", c.cores, q, p, c.quota, c.period)
		}
	}
}
