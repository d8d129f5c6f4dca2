package direct

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
)

func TestRun(t *testing.T) {
	s := testStarter(t)
	tests := []struct {
		name, script string
		want         outcome
	}{
		{"output", "echo out; echo err >&2", outcome{stdout: "out\n", stderr: "err\n"}},
		{"exit code", "exit 3", outcome{status: bundle.Status{Code: 3}}},
		{"signal", "kill -9 $$", outcome{status: bundle.Status{Signal: 9}}},
		{"128 and more", "exit 137", outcome{status: bundle.Status{Code: 137}}},
		{"hostname", "hostname", outcome{stdout: "berth\n"}},
		{"stderr by name", "echo first >&2; echo second >/dev/stderr; echo third >&2", outcome{stderr: "first\nsecond\nthird\n"}},
		{"stdin is the null device", "cat; readlink /proc/self/fd/0", outcome{stdout: "/dev/null\n"}},
		{"no other descriptors", "i=0; while [ $i -lt 1000 ]; do [ -e /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done; true", outcome{stdout: "0\n1\n2\n"}},
		{"a session of its own", "cut -d' ' -f6 /proc/$$/stat", outcome{stdout: "1\n"}},
	}
	for _, tt := range tests {
		for _, init := range []bool{true, false} {
			name, want := tt.name+"/init", tt.want
			if !init {
				name = tt.name + "/no init"
				if tt.name == "signal" {
					want = outcome{} // pid 1 is not killed by a signal of its own
				}
			}
			t.Run(name, func(t *testing.T) {
				got := run(t, s, tt.script, func(b *bundle.Bundle) { b.Init = init })
				got.status.CPU = 0
				if got.stdout != want.stdout || got.stderr != want.stderr || got.status != want.status {
					t.Errorf("got %v\nwant %v", got, want)
				}
			})
		}
	}
}

// TestDefaultSignals: what this program blocks, ignores or handles is not the command's.
func TestDefaultSignals(t *testing.T) {
	s := testStarter(t)
	signal.Ignore(unix.SIGUSR2)
	defer signal.Reset(unix.SIGUSR2)
	for _, init := range []bool{true, false} {
		b := testBundle(t, testSpec(t, "grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"))
		b.Init = init
		got, err := runBundle(t, s, b)
		want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n"
		if err != nil || got.stdout != want {
			t.Errorf("init %v: %v, %v", init, got, err)
		}
	}
}

func TestCommandErrors(t *testing.T) {
	s := testStarter(t)
	layer, err := busyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"denied": "x", "odd": "x", "crlf": "#!/bin/sh\r\n"} {
		mode := os.FileMode(0o755)
		if name == "denied" {
			mode = 0o644
		}
		if err := os.WriteFile(layer+"/bin/test-"+name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name    string
		command string
		want    syscall.Errno
	}{
		{"not in PATH", "no-such-command", unix.ENOENT},
		{"not at its path", "/no/such/command", unix.ENOENT},
		{"empty", "", unix.ENOENT},
		{"not executable", "/bin/test-denied", unix.EACCES},
		{"in PATH, not executable", "test-denied", unix.EACCES},
		{"a directory", "/bin", unix.EACCES},
		{"no program", "/bin/test-odd", unix.ENOEXEC},
		{"no interpreter", "/bin/test-crlf", unix.ENOENT},
	}
	for _, tt := range tests {
		for _, init := range []bool{true, false} {
			name := tt.name
			if init {
				name += "/init"
			}
			t.Run(name, func(t *testing.T) {
				b := testBundle(t, testSpec(t, tt.command, "x"))
				b.Init = init
				_, err := s.Start(t.Context(), b)
				var serr *bundle.StartError
				if !errors.As(err, &serr) || serr.Errno != tt.want || serr.Command != tt.command {
					t.Errorf("got %v, want a StartError of %q: %v", err, tt.command, tt.want)
				}
			})
		}
	}
}

func TestStepErrors(t *testing.T) {
	s := testStarter(t)
	tests := []struct {
		name string
		edit func(*bundle.Bundle)
		want string
	}{
		{"working directory that may not be entered", func(b *bundle.Bundle) {
			layer := b.Root.Layers[0]
			if err := os.MkdirAll(layer+"/closed", 0o700); err != nil {
				t.Fatal(err)
			}
			b.Spec.Process.Cwd = "/closed"
			b.Spec.Process.User.UID = 1000
		}, "start container: enter working directory /closed: permission denied"},
		{"bad option of a file system", func(b *bundle.Bundle) { b.Spec.Mounts[1].Options = []string{"size=lots"} }, "start container: mount tmpfs on /dev: invalid argument"},
		{"sysctl that is not there", func(b *bundle.Bundle) { b.Spec.Linux.Sysctl = map[string]string{"net.no.such": "1"} }, "start container: set sysctl sys/net/no/such: no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testBundle(t, testSpec(t, "/bin/true"))
			tt.edit(b)
			_, err := s.Start(t.Context(), b)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	s := testStarter(t)
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := w.WriteString("given\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := run(t, s, "cat", func(b *bundle.Bundle) { b.Stdin = in }); got.stdout != "given\n" {
		t.Errorf("stdin: %v", got)
	}
	got := run(t, s, "cat; readlink /proc/self/fd/0", func(b *bundle.Bundle) {
		b.ReplaceStdin = "/tmp/link"
		if err := os.WriteFile(b.Root.Layers[0]+"/etc/stdin", []byte("text\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(b.Root.Layers[0] + "/tmp/link")
		if err := os.Symlink("../../../etc/stdin", b.Root.Layers[0]+"/tmp/link"); err != nil {
			t.Fatal(err)
		}
	})
	if got.stdout != "text\n/etc/stdin\n" {
		t.Errorf("stdin from a file of the container: %v", got)
	}
	user := func(b *bundle.Bundle) { b.Spec.Process.User = specs1000 }
	if got := run(t, s, "id -u; echo first >&2; echo second >/dev/stderr; echo third >&2; echo x >/dev/stdout", user); got.stderr != "first\nsecond\nthird\n" || got.stdout != "1000\nx\n" {
		t.Errorf("streams of another user: %v", got)
	}
}

// A link with ".." is followed also while files are renamed elsewhere on the host: the kernel says EAGAIN then.
func TestStreamsWhileOthersRename(t *testing.T) {
	s := testStarter(t)
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for from, to := dir+"/x", dir+"/y"; ; from, to = to, from {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(from, to)
			}
		}
	})
	for range 20 {
		got := run(t, s, "cat", func(b *bundle.Bundle) {
			b.ReplaceStdin = "/tmp/link"
			_ = os.Remove(b.Root.Layers[0] + "/tmp/link")
			if err := errors.Join(
				os.WriteFile(b.Root.Layers[0]+"/etc/stdin", []byte("text\n"), 0o644),
				os.Symlink("../../../etc/../etc/../etc/../etc/stdin", b.Root.Layers[0]+"/tmp/link"),
			); err != nil {
				t.Fatal(err)
			}
		})
		if got.stdout != "text\n" {
			t.Fatalf("%v", got)
		}
	}
	close(stop)
	others.Wait()
}

func TestSignalAndKill(t *testing.T) {
	s := testStarter(t)
	for _, tt := range []struct {
		name string
		act  func(bundle.Process) error
		want bundle.Status
	}{
		{"signal that the command handles", func(p bundle.Process) error { return p.Signal(unix.SIGUSR1) }, bundle.Status{Code: 5}},
		{"signal that ends the command", func(p bundle.Process) error { return p.Signal(unix.SIGTERM) }, bundle.Status{Signal: unix.SIGTERM}},
		{"kill", func(p bundle.Process) error { return p.Kill() }, bundle.Status{Signal: unix.SIGKILL}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := testBundle(t, testSpec(t, "/bin/sh", "-c", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done"))
			b.Init = true
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b.Stdout = w
			p, err := s.Start(t.Context(), b)
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			if err := tt.act(p); err != nil {
				t.Error(err)
			}
			st, err := p.Wait()
			st.CPU = 0
			if err != nil || st != tt.want {
				t.Errorf("ended with %+v, %v, want %+v", st, err, tt.want)
			}
			if err := p.Kill(); err != nil {
				t.Errorf("kill of what has ended: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	s := testStarter(t)
	got := run(t, s, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done", func(b *bundle.Bundle) { b.Init = true })
	if got.status.CPU == 0 {
		t.Error("a busy loop used no CPU time")
	}
}

func TestMountTargets(t *testing.T) {
	s := testStarter(t)
	src := t.TempDir()
	if err := os.WriteFile(src+"/file", []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(src+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		links  map[string]string // in the image
		dest   []string
		script string
		want   string
	}{
		{"file that is not there", nil, []string{"/made/here/file"}, "cat /made/here/file", "of the host\n"},
		{"link to elsewhere in the root", map[string]string{"t-link": "/etc"}, []string{"/t-link/file"}, "cat /etc/file", "of the host\n"},
		{"link that would lead out", map[string]string{"t-out": "../../../../../../tmp"}, []string{"/t-out/file"}, "cat /tmp/file", "of the host\n"},
		{"link to what is not there", map[string]string{"t-dangling": "../run/not/there"}, []string{"/t-dangling"}, "cat /run/not/there", "of the host\n"},
		{"dots", nil, []string{"/etc/../home/./../../root/file"}, "cat /root/file", "of the host\n"},
		{"below a tmpfs of the spec", nil, []string{"/dev/a/b/file"}, "cat /dev/a/b/file", "of the host\n"},
		{"link into a tmpfs of the spec", map[string]string{"t-dev": "dev/shm"}, []string{"/t-dev/x/file"}, "cat /dev/shm/x/file", "of the host\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, s, tt.script, func(b *bundle.Bundle) {
				image := t.TempDir()
				for name, to := range tt.links {
					if err := os.Symlink(to, image+"/"+name); err != nil {
						t.Fatal(err)
					}
				}
				b.Root.Layers = append([]string{image}, b.Root.Layers...)
				for _, d := range tt.dest {
					b.Spec.Mounts = append(b.Spec.Mounts, bindMount(src+"/file", d, "ro"))
				}
			})
			if got.stdout != tt.want {
				t.Errorf("got %v\nwant %q", got, tt.want)
			}
		})
	}
	t.Run("below a bind mount", func(t *testing.T) {
		got := run(t, s, "cat /in/dir/sub/file; echo x >/in/dir/w || true", func(b *bundle.Bundle) {
			b.Spec.Mounts = append(b.Spec.Mounts, bindMount(src, "/in", "rw"), bindMount(src+"/file", "/in/dir/sub/file", "ro"))
		})
		if got.stdout != "of the host\n" {
			t.Errorf("got %v", got)
		}
		if _, err := os.Stat(src + "/dir/sub/file"); err != nil {
			t.Errorf("the mount point is not in the source: %v", err)
		}
	})
	t.Run("loop of links", func(t *testing.T) {
		b := testBundle(t, testSpec(t, "/bin/true"))
		image := t.TempDir()
		if err := os.Symlink("t-loop", image+"/t-loop"); err != nil {
			t.Fatal(err)
		}
		b.Root.Layers = append([]string{image}, b.Root.Layers...)
		b.Spec.Mounts = append(b.Spec.Mounts, bindMount(src, "/t-loop/x", "ro"))
		if _, err := s.Start(t.Context(), b); err == nil || !strings.Contains(err.Error(), "too many levels of symbolic links") {
			t.Errorf("got %v", err)
		}
	})
}
