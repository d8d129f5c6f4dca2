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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
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

// pull measures how long each takes to pull and unpack an image from a registry on loopback. Each round has an
// image of its own and nothing is removed meanwhile: ext4 passes over every inode that was freed lately when it
// makes a file, so that removing what was pulled before would be measured as well, and more than the pulling.
func (b *bench) pull(ctx context.Context) error {
	if err := b.bed.startRegistry(ctx); err != nil {
		return err
	}
	layers, size, err := benchLayers()
	if err != nil {
		return err
	}
	rounds := b.times(5)
	ref := func(i int) string { return b.bed.registry + "/bench:" + round(i) }
	for i := -2; i < rounds; i++ {
		if err := pushImage(ctx, ref(i), layers); err != nil {
			return err
		}
	}
	dir := func(name string, i int) string { return filepath.Join(b.bed.dir, name+round(i)) }
	samples, err := interleave(ctx, []contender{
		{"berth image pull", rounds, func(ctx context.Context, i int) error {
			return b.bed.command(ctx, b.bed.berth, "--data-dir", dir("pull-berth", i), "image", "pull", "--quiet", ref(i))
		}},
		{"docker pull", rounds, func(ctx context.Context, i int) error {
			return b.bed.command(ctx, "docker", "pull", "--quiet", ref(i))
		}},
		{"skopeo copy, umoci unpack", rounds, func(ctx context.Context, i int) error {
			oci := dir("pull-oci", i)
			if err := b.bed.command(ctx, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref(i), "oci:"+oci+":1"); err != nil {
				return err
			}
			return b.bed.command(ctx, "umoci", "unpack", "--image", oci+":1", oci+"-bundle")
		}},
	})
	if err != nil {
		return err
	}
	table(fmt.Sprintf("Pull and unpack an image of %d MB in %d gzip layers from loopback", size/1e6, len(layers)), "berth image pull", samples)
	return nil
}

// benchLayer is a part of this machine's own programs and libraries, as an archive.
type benchLayer struct{ raw, zipped []byte }

// benchLayers makes 5 layers of 50 MB, and says how large they are unpacked.
func benchLayers() (layers []benchLayer, size int64, err error) {
	parts, err := pickFiles(5, 50e6)
	if err != nil {
		return nil, 0, err
	}
	for _, files := range parts {
		raw, err := tarFiles(files)
		if err != nil {
			return nil, 0, err
		}
		zipped, err := zip(raw)
		if err != nil {
			return nil, 0, err
		}
		layers = append(layers, benchLayer{raw, zipped})
		size += int64(len(raw))
	}
	return layers, size, nil
}

func zip(raw []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(raw)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// pushImage pushes an image of the layers, with a file in each of them that makes it like no other.
func pushImage(ctx context.Context, ref string, layers []benchLayer) error {
	img := v1.Image(empty.Image)
	for i, l := range layers {
		mark, err := markTar(fmt.Sprint(ref, i))
		if err != nil {
			return err
		}
		zipped, err := zip(mark)
		if err != nil {
			return err
		}
		layer, err := newBlob(append(mark, l.raw...), append(zipped, l.zipped...))
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(r, img, remote.WithContext(ctx))
}

// blob is a layer in memory.
type blob struct {
	raw, zipped    []byte
	diffID, digest v1.Hash
}

func newBlob(raw, zipped []byte) (v1.Layer, error) {
	diffID, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	digest, _, err := v1.SHA256(bytes.NewReader(zipped))
	return blob{raw, zipped, diffID, digest}, err
}

func (b blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b blob) DiffID() (v1.Hash, error)            { return b.diffID, nil }
func (b blob) Size() (int64, error)                { return int64(len(b.zipped)), nil }
func (b blob) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
func (b blob) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b.zipped)), nil
}

func (b blob) Uncompressed() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.raw)), nil }

// markTar is the beginning of an archive: one small file.
func markTar(text string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "mark", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return nil, err
	}
	_, err := io.WriteString(w, text)
	err = errors.Join(err, w.Flush())
	return out.Bytes(), err
}

// pickFiles picks the files of /usr, with the directories that they lie in and the symbolic links beside them, in
// parts of so many bytes.
func pickFiles(n int, each int64) ([][]string, error) {
	parts := make([][]string, n)
	at, size := 0, int64(0)
	err := filepath.WalkDir("/usr", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() && !d.IsDir() && d.Type() != fs.ModeSymlink {
			return nil //nolint:nilerr // what cannot be read is not picked
		}
		st, err := d.Info()
		if err != nil || d.Type().IsRegular() && st.Size() > 8<<20 {
			return nil //nolint:nilerr // as above
		}
		if len(parts[at]) == 0 {
			for dir := filepath.Dir(p); dir != "/"; dir = filepath.Dir(dir) {
				parts[at] = slices.Insert(parts[at], 0, dir)
			}
		}
		parts[at] = append(parts[at], p)
		if d.Type().IsRegular() {
			size += st.Size()
		}
		if size >= each {
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
		if err := tarFile(w, f); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func tarFile(w *tar.Writer, path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	if st.Mode().Type() == fs.ModeSymlink {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	hdr.Name = strings.TrimPrefix(path, "/")
	if !st.Mode().IsRegular() {
		return w.WriteHeader(hdr)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	hdr.Size = int64(len(raw))
	if err := w.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

// memory measures what the berth binary's own monitor holds, idle and with containers, and their inits.
func (b *bench) memory(ctx context.Context) (err error) {
	e, err := oci.New(oci.Config{Dir: filepath.Join(b.bed.dir, "memory"), Monitor: []string{b.bed.berth}})
	if err != nil {
		return err
	}
	var open []berth.Sandbox
	defer func() {
		for _, sb := range open {
			err = errors.Join(err, sb.Close(context.WithoutCancel(ctx)))
		}
		err = errors.Join(err, e.Close())
	}()
	img, err := b.bed.load(ctx, e)
	if err != nil {
		return err
	}
	run := func(id string, command ...string) (berth.Container, error) {
		sb, err := e.Open(ctx, berth.SandboxSpec{ID: id})
		if err != nil {
			return nil, err
		}
		open = append(open, sb)
		return sb.Start(ctx, berth.StepSpec{ID: "s", Image: img, Command: command})
	}
	c, err := run("warm", "true")
	if err != nil {
		return err
	}
	if _, err := c.Wait(ctx); err != nil {
		return err
	}
	pid, err := processOf("berth-monitor", e.Dir())
	if err != nil {
		return err
	}
	const n = 100
	states := []string{"monitor, idle", fmt.Sprintf("monitor, %d containers started", n), fmt.Sprintf("monitor, %d containers running", n)}
	held := make([]map[string]int64, len(states))
	for i := range states {
		if i == 1 {
			for k := range n {
				if _, err := run(fmt.Sprint("mem", k), "sleep", "1000"); err != nil {
					return err
				}
			}
		} else {
			time.Sleep(settle)
		}
		if held[i], err = smaps(pid); err != nil {
			return err
		}
	}
	inits, err := childrenPss(pid)
	if err != nil {
		return err
	}
	if len(inits) != n {
		return fmt.Errorf("the monitor has %d children, not %d", len(inits), n)
	}
	each := int64(0)
	for _, pss := range inits {
		each += pss
	}
	each /= n
	fmt.Printf("\nMemory, KiB (goals: 12288 for the monitor, 512 for each container)\n%-34s %10s %10s\n", "", "RSS", "PSS")
	for i, s := range states {
		fmt.Printf("%-34s %10d %10d\n", s, held[i]["Rss"], held[i]["Pss"])
	}
	growth := (held[2]["Rss"] - held[0]["Rss"]) / n
	fmt.Printf("%-34s %10s %10d\n%-34s %10d\n", "init, each", "", each, "each container, beyond its task", growth+each)
	return nil
}

// settle is how long the monitor is left alone before its memory is read.
const settle = 3 * time.Second

// childrenPss are the proportional set sizes of a process's children, in KiB.
func childrenPss(pid int) ([]int64, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var all []int64
	for _, l := range lists {
		raw, err := os.ReadFile(l)
		if err != nil {
			return nil, err
		}
		for f := range strings.FieldsSeq(string(raw)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			m, err := smaps(child)
			if err != nil {
				return nil, err
			}
			all = append(all, m["Pss"])
		}
	}
	return all, nil
}

// processOf finds the process of that name which looks after a data directory.
func processOf(name, dir string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		raw, err := os.ReadFile(p)
		if err == nil && strings.HasPrefix(string(raw), name+"\x00") && strings.Contains(string(raw), "\x00"+dir+"\x00") {
			return strconv.Atoi(filepath.Base(filepath.Dir(p)))
		}
	}
	return 0, fmt.Errorf("no %s runs", name)
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
		wall, cpu, err := drain(ctx, b.bed.env, c.argv, 1<<30)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("%-34s %10.2f %14.2f\n", c.name, wall.Seconds(), cpu.Seconds())
	}
	return nil
}

// drain runs a command and reads its output, of so many bytes. The CPU time is that of the whole machine less the reader's.
func drain(ctx context.Context, env, argv []string, size int64) (wall, cpu time.Duration, err error) {
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
	if n != size {
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
