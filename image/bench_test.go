package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-project/berth"
)

// benchLayers are directories of a usual system, of which the layers of the benchmark's image are made.
var benchLayers = []struct {
	dir   string
	bytes int64
}{
	{"/usr/lib", 110 << 20}, {"/usr/share", 60 << 20}, {"/usr/bin", 40 << 20}, {"/usr/include", 10 << 20}, {"/etc", 2 << 20},
}

// BenchmarkPull pulls an image of about 220 MiB in 5 layers from Debian's registry on loopback.
// Beside it, where they are installed, skopeo and umoci do the same.
func BenchmarkPull(b *testing.B) {
	host := startRegistry(b)
	for _, c := range []struct {
		name string
		comp ggcr.Compression
	}{{"gzip", ggcr.GZip}, {"zstd", ggcr.ZStd}} {
		ref := host + "/bench/img:" + c.name
		push(b, ref, benchImage(b, c.comp))
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				s, err := Open(Options{Dir: filepath.Join(b.TempDir(), "images")})
				if err != nil {
					b.Fatal(err)
				}
				img, err := s.Image(b.Context(), berth.ImageRequest{Ref: ref, Platform: "linux/amd64"})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				info, err := s.Inspect(b.Context(), img.ID)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(info.Size)/(1<<20), "MiB")
				b.StartTimer() // nothing is removed here: see README.md
			}
			var ru syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err == nil {
				b.ReportMetric(float64(ru.Maxrss)/1024, "maxMiB")
			}
		})
		if c.comp == ggcr.GZip { // umoci knows no other
			b.Run(c.name+"-skopeo-umoci", func(b *testing.B) { benchPeers(b, ref) })
		}
	}
}

// BenchmarkStart measures what each start of a container asks of the store.
func BenchmarkStart(b *testing.B) {
	s, err := Open(Options{Dir: filepath.Join(b.TempDir(), "images")})
	if err != nil {
		b.Fatal(err)
	}
	img := pulled(b, s, layer(b, dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n")), layer(b, file("a", "")), layer(b, file("c", "")))
	holder := b.TempDir()
	check := func(b *testing.B, err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("Image", func(b *testing.B) {
		for b.Loop() {
			_, err := s.Image(b.Context(), berth.ImageRequest{Ref: img.Ref, Platform: "linux/amd64"})
			check(b, err)
		}
	})
	b.Run("Layers", func(b *testing.B) {
		for b.Loop() {
			_, err := s.Layers(img.ID)
			check(b, err)
		}
	})
	b.Run("Lookup", func(b *testing.B) {
		for b.Loop() {
			_, err := s.Lookup(img.ID, "/etc/passwd")
			check(b, err)
		}
	})
	b.Run("Hold", func(b *testing.B) {
		for b.Loop() {
			check(b, s.Hold(img.ID, holder))
			check(b, s.Release(img.ID, holder))
		}
	})
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			_, err := Open(s.opts)
			check(b, err)
		}
	})
}

// benchPeers does with skopeo and umoci what berth does.
func benchPeers(b *testing.B, ref string) {
	if _, err := exec.LookPath("umoci"); err != nil {
		b.Skip("umoci is not installed")
	}
	for b.Loop() {
		dir := b.TempDir()
		copied, err := exec.CommandContext(b.Context(), "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+"/oci:x").CombinedOutput()
		if err != nil {
			b.Fatalf("skopeo: %v: %s", err, copied)
		}
		unpacked, err := exec.CommandContext(b.Context(), "umoci", "unpack", "--image", dir+"/oci:x", dir+"/bundle").CombinedOutput()
		if err != nil {
			b.Fatalf("umoci: %v: %s", err, unpacked)
		}
	}
}

// benchImage packs directories of this machine.
func benchImage(b *testing.B, comp ggcr.Compression) v1.Image {
	b.Helper()
	var layers []v1.Layer
	for i, l := range benchLayers {
		path := filepath.Join(b.TempDir(), fmt.Sprint(i))
		packDir(b, path, l.dir, l.bytes)
		layer, err := tarball.LayerFromFile(path, tarball.WithCompression(comp))
		if err != nil {
			b.Fatal(err)
		}
		layers = append(layers, layer)
	}
	return newImage(b, layers...)
}

// packDir writes a directory to a tar file, up to a number of bytes.
func packDir(b *testing.B, to, dir string, most int64) {
	b.Helper()
	f, err := os.Create(to)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || most < 0 {
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() && !info.IsDir() && info.Mode().Type() != fs.ModeSymlink || info.Size() > 20<<20 {
			return err
		}
		target, _ := os.Readlink(p)
		hdr, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		hdr.Name = strings.TrimPrefix(p, "/")
		if err := w.WriteHeader(hdr); err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		most -= info.Size()
		body, err := os.ReadFile(p)
		if err == nil {
			_, err = io.Copy(w, bytes.NewReader(body))
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

// startRegistry runs Debian's docker-registry on loopback, over a directory of its own.
func startRegistry(t testing.TB) (host string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: %q}\n", dir, host)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatalf("the tests need Debian's docker-registry: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry does not answer")
	return ""
}
