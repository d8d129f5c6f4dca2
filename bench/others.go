package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func replaceOnce(s, from, to string) string { return strings.Replace(s, from, to, 1) }

// cli measures whole commands, from the shell's prompt to their exit.
func (b *bench) cli(ctx context.Context) error {
	samples, err := interleave(ctx, []contender{
		{"berth run", b.times(60), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, b.bed.berth, "run", imageName, "true")
		}},
		{"runc run", b.times(60), func(ctx context.Context, i int) error { return b.bed.runRunc(ctx, 2_000_000+i, b.bed.bundle) }},
		{"docker run", b.times(20), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, "docker", "run", "--rm", "--network=none", imageName, "/bin/true")
		}},
	})
	if err != nil {
		return err
	}
	table("Whole commands, from the shell's prompt to their exit", "berth run", samples)
	return nil
}

// pull measures how long each takes to pull and unpack an image from a registry on loopback.
func (b *bench) pull(ctx context.Context) error {
	if err := b.bed.startRegistry(ctx); err != nil {
		return err
	}
	ref := b.bed.registry + "/bench:1"
	size, err := pushImage(ctx, ref)
	if err != nil {
		return err
	}
	oci := filepath.Join(b.bed.dir, "pull-oci")
	data := filepath.Join(b.bed.dir, "pull-berth")
	samples, err := interleave(ctx, []contender{
		{"berth image pull", b.times(5), func(ctx context.Context, _ int) error {
			if err := os.RemoveAll(data); err != nil {
				return err
			}
			return b.bed.command(ctx, b.bed.berth, "--data-dir", data, "image", "pull", "--quiet", ref)
		}},
		{"docker pull", b.times(5), func(ctx context.Context, _ int) error {
			_ = b.bed.command(ctx, "docker", "rmi", ref)
			return b.bed.command(ctx, "docker", "pull", "--quiet", ref)
		}},
		{"skopeo copy, umoci unpack", b.times(5), func(ctx context.Context, _ int) error {
			if err := errors.Join(os.RemoveAll(oci), os.RemoveAll(oci+"-bundle")); err != nil {
				return err
			}
			if err := b.bed.command(ctx, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "oci:"+oci+":1"); err != nil {
				return err
			}
			return b.bed.command(ctx, "umoci", "unpack", "--image", oci+":1", oci+"-bundle")
		}},
	})
	if err != nil {
		return err
	}
	table(fmt.Sprintf("Pull and unpack an image of %d MB in 5 gzip layers from loopback (what was there is removed within the time)", size/1e6), "berth image pull", samples)
	return nil
}

// pushImage makes an image of this machine's own programs and libraries, in 5 layers, and pushes it.
func pushImage(ctx context.Context, ref string) (int64, error) {
	img := v1.Image(empty.Image)
	total := int64(0)
	parts, err := pickFiles(5, 45<<20)
	if err != nil {
		return 0, err
	}
	for _, files := range parts {
		raw, err := tarFiles(files)
		if err != nil {
			return 0, err
		}
		total += int64(len(raw))
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, tarball.WithCompressionLevel(gzip.DefaultCompression))
		if err != nil {
			return 0, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return 0, err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return 0, err
	}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return 0, err
	}
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return 0, err
	}
	return total, remote.Write(r, img, remote.WithContext(ctx))
}

func pickFiles(n int, each int64) ([][]string, error) {
	parts := make([][]string, n)
	at, size := 0, int64(0)
	err := filepath.WalkDir("/usr", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read is not picked
		}
		st, err := d.Info()
		if err != nil || st.Size() > 8<<20 {
			return nil //nolint:nilerr // as above
		}
		parts[at] = append(parts[at], p)
		if size += st.Size(); size >= each {
			if at, size = at+1, 0; at == n {
				return fs.SkipAll
			}
		}
		return nil
	})
	return parts, err
}

func tarFiles(files []string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(f, "/"), Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(raw))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(raw); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// memory measures what berth itself holds, idle and for each running container.
func (b *bench) memory(ctx context.Context) error {
	pid, err := monitorOf(b.bed.engine.Dir())
	if err != nil {
		return err
	}
	if err := b.bed.runEngine(ctx, "mem-warm", "true"); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	idle, err := smaps(pid)
	if err != nil {
		return err
	}
	const n = 100
	var open []berth.Sandbox
	defer func() {
		for _, sb := range open {
			_ = sb.Close(context.WithoutCancel(ctx))
		}
	}()
	inits := int64(0)
	for i := range n {
		sb, err := b.bed.engine.Open(ctx, berth.SandboxSpec{ID: fmt.Sprint("mem", i)})
		if err != nil {
			return err
		}
		open = append(open, sb)
		c, err := sb.Start(ctx, berth.StepSpec{ID: "s", Image: b.bed.image, Command: []string{"sleep", "1000"}})
		if err != nil {
			return err
		}
		if p, ok := c.(interface{ Pid() int }); ok {
			m, err := smaps(p.Pid())
			if err != nil {
				return err
			}
			inits += m["Pss"]
		}
	}
	time.Sleep(2 * time.Second)
	full, err := smaps(pid)
	if err != nil {
		return err
	}
	fmt.Printf("\nMemory, KiB\n%-34s %10s %10s\n", "", "RSS", "PSS")
	fmt.Printf("%-34s %10d %10d\n", "monitor, idle", idle["Rss"], idle["Pss"])
	fmt.Printf("%-34s %10d %10d\n", fmt.Sprintf("monitor, %d containers", n), full["Rss"], full["Pss"])
	fmt.Printf("%-34s %10s %10d\n", "init, each", "", inits/n)
	fmt.Printf("%-34s %10s %10d   (monitor's growth and init; goal 512)\n", "each running container", "", (full["Pss"]-idle["Pss"])/n+inits/n)
	return nil
}

func monitorOf(dir string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		raw, err := os.ReadFile(p)
		if err == nil && strings.HasPrefix(string(raw), "berth-monitor\x00") && strings.Contains(string(raw), "\x00"+dir+"\x00") {
			return strconv.Atoi(filepath.Base(filepath.Dir(p)))
		}
	}
	return 0, errors.New("no monitor runs")
}

// smaps are the sums of /proc/PID/smaps_rollup, in KiB.
func smaps(pid int) (map[string]int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "kB" {
			out[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	return out, nil
}

// output measures 1 GiB of output, and what it costs in CPU time beside the container's own.
func (b *bench) output(ctx context.Context) error {
	write := []string{"dd", "if=/dev/zero", "bs=65536", "count=16384"}
	fmt.Printf("\n1 GiB of output, to a pipe\n%-34s %10s %14s\n", "", "seconds", "CPU s of it")
	for _, c := range []struct {
		name string
		argv []string
	}{
		{"no container", append([]string{"/bin/busybox"}, write...)},
		{"berth run", append([]string{b.bed.berth, "run", imageName}, write...)},
		{"docker run", append([]string{"docker", "run", "--rm", "--network=none", imageName}, write...)},
	} {
		wall, cpu, err := drain(ctx, b.bed.env, c.argv)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("%-34s %10.2f %14.2f\n", c.name, wall.Seconds(), cpu.Seconds())
	}
	return nil
}

// drain runs a command and reads its output. The CPU time is that of the whole machine less the reader's.
func drain(ctx context.Context, env, argv []string) (wall, cpu time.Duration, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	before, begin := busy(), time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	n, err := io.Copy(io.Discard, out)
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, 0, err
	}
	if n != 1<<30 {
		return 0, 0, fmt.Errorf("%d bytes came", n)
	}
	return time.Since(begin), busy() - before, nil
}

// busy is the CPU time that the machine has spent, but for idling.
func busy() time.Duration {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	sum := int64(0)
	for i, f := range strings.Fields(line)[1:] {
		n, _ := strconv.ParseInt(f, 10, 64)
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return time.Duration(sum) * time.Second / 100
}
