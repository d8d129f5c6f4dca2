package cli

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-project/berth/engine/oci/vmtest"
)

// delegation is what an ordinary user does on a host with cgroup v2 and no systemd. Each step prints a line of its
// own, then what berth says.
const delegation = `
chmod u+s $(which newuidmap) $(which newgidmap)
mkdir -m 700 /mnt/home && chown user:user /mnt/home
cat >/as <<'end'
#!/bin/sh
exec su user -c "export HOME=/mnt/home PATH=$PATH; cd /mnt/home; $1"
end
chmod 755 /as
cat >/check <<'end'
berth info | grep -E '^(user|engine)|(CPU|memory|pids) limits'
berth run --memory 48MiB --result r.json bb dd if=/dev/zero of=/dev/null bs=200M count=1; echo exit $?
grep -o '"reason": *"[A-Za-z]*"' r.json | head -1
berth run --pids 20 bb sh -c 'i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo all' 2>/dev/null | grep all
berth run --cpus 0.5 --memory 100MiB bb sh -c 'cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max; touch f; chown 5:6 f; stat -c %u:%g f'
end
given() { # a cgroup of the user's, made by hand
	mkdir /sys/fs/cgroup/$1
	echo +cpu +io +memory +pids >/sys/fs/cgroup/cgroup.subtree_control
	chown user /sys/fs/cgroup/$1 /sys/fs/cgroup/$1/cgroup.procs /sys/fs/cgroup/$1/cgroup.subtree_control
}
monitors() { grep -l ^berth-monitor /proc/[0-9]*/cmdline 2>/dev/null | grep -o '[0-9]*'; }
ended() { while [ "$(monitors)" ]; do sleep 0.1; done; }

echo == import
/as "berth image import --quiet /image.tar bb" >/dev/null; echo exit $?

echo == nothing is delegated
/as "berth info" | grep -A1 'memory limits'
said=$(/as "berth run --memory 48MiB bb true" 2>&1); echo exit $?; echo "$said"
/as "berth run bb echo without a limit"
ended # at once: it cannot keep limits

echo == as it told
remedy=$(echo "$said" | sed -n 's/.*as root: \(.*\), where PID.*/\1/p' | sed 's/PID/$$/')
sh -c "eval \"$(echo "$remedy" | sed 's/\$/\\$/g')\"; exec /as 'sh /check'"
kill $(monitors); ended

given alone
echo == alone in what was delegated
sh -c 'echo $$ >/sys/fs/cgroup/alone/cgroup.procs; exec /as "exec berth run --memory 48MiB bb dd if=/dev/zero of=/dev/null bs=200M count=1"'; echo exit $?
kill $(monitors); ended

given shared
echo == beside a shell
sh -c 'echo $$ >/sys/fs/cgroup/shared/cgroup.procs; exec /as "berth run --memory 48MiB bb true; echo exit \$?; berth info | grep -A1 memory.limits
	mkdir /sys/fs/cgroup/shared/shell && echo \$\$ >/sys/fs/cgroup/shared/shell/cgroup.procs; echo moved
	sh /check"'
kill $(monitors); ended

echo == without overlay
export BERTH_DATA_DIR=/mnt/root
berth image import --quiet /image.tar bb >/dev/null
rmmod overlay; echo removed $?
berth info | grep -A1 'overlay'
berth run bb true; echo exit $?
berth ps -q
`

// TestDelegatedOnV2 is berth itself, with the programs that give an ordinary user its ids, where cgroups are of v2
// alone and nobody but root has delegated any.
func TestDelegatedOnV2(t *testing.T) {
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(image, archive, 0o644); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/bin/berth": vmtest.BuildCommand(t, "../../cmd/berth"), "/image.tar": image}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		maps.Copy(files, vmtest.Program(t, name))
	}
	r := vmtest.Run(t, vmtest.Config{
		Files: files, Disk: 1 << 30, Modules: append(vmtest.DefaultModules(), "virtio_pci", "virtio_blk", "ext4"),
		Commands: [][]string{
			{"sh", "-c", "mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && chmod 1777 /mnt"},
			{"sh", "-c", delegation},
		},
	})
	t.Logf("%s", r.Output)
	const (
		all = `user +not root; root of a user namespace
engine +oci: Linux [^ ]+, cgroup v2 \(cpu io memory pids\), rootless
berth: OutOfMemory: the memory limit of 48 MiB was reached.*
exit 137
"reason": *"OutOfMemory"
50000 100000
104857600
0
5:6
`
	)
	want := []struct{ step, says string }{
		{"import", "exit 0\n"},
		{"nothing is delegated", `(?:lacks +| +)memory limits: no cgroup here can be written by this user
 +remedy: as root: cd /sys/fs/cgroup && .*
exit 125
berth: .*memory limit: unsupported: no cgroup here can be written by this user; as root: cd /sys/fs/cgroup && [^\n]*
without a limit
`},
		{"as it told", all},
		{"alone in what was delegated", "berth: OutOfMemory: the memory limit of 48 MiB was reached.*\nexit 137\n"},
		{"beside a shell", `berth: .*memory limit: unsupported: the memory controller of /sys/fs/cgroup/shared cannot be given .* none but its own: sh \(\d+\); move them into a cgroup below it.*
exit 125
(?:lacks +| +)memory limits: the memory controller of /sys/fs/cgroup/shared cannot.*
 +remedy: move them .*
moved
` + all},
		{"without overlay", `removed 0
(?:lacks +| +)overlay file system: no container can start without it
 +remedy: load it as root \(modprobe overlay\).*
berth: .*overlay file system: unsupported by this kernel: load it as root \(modprobe overlay\).*
exit 125
`},
	}
	steps := strings.Split(string(r.Output), "== ")[1:]
	for i, w := range want {
		if i >= len(steps) {
			t.Fatalf("it ended before %q", w.step)
		}
		if !regexp.MustCompile(`\A` + w.step + "\n" + w.says + `\z`).MatchString(steps[i]) {
			t.Errorf("%q\nsays\n%s\nwant\n%s", w.step, steps[i], w.says)
		}
	}
}
