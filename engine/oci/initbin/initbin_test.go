package initbin_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/initbin"
)

func TestEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		script string
		code   int
		status uint32
	}{
		{"success", "exit 0", 0, 0},
		{"failure", "exit 3", 3, 3 << 8},
		{"largest code", "exit 255", 255, 255 << 8},
		{"signal", "kill -9 $$", 137, 9},
		{"another signal", "kill -TERM $$", 143, 15},
		{"a code that looks like a signal's", "exit 137", 137, 137 << 8},
		{"leaving a process behind", "sleep 1000 >/dev/null 2>&1 & exit 5", 5, 5 << 8},
	} {
		for _, notPid1 := range []bool{false, true} {
			if notPid1 && strings.Contains(c.script, "&") {
				continue // what is left behind ends with pid 1 only
			}
			t.Run(fmt.Sprintf("%s/pid 1 %v", c.name, !notPid1), func(t *testing.T) {
				p := start(t, options{notPid1: notPid1}, "sh", "-c", c.script)
				code, got := p.exit(), p.records()
				if len(got) != 2 {
					t.Fatalf("records %+v", got)
				}
				want := []initbin.Record{{initbin.Executed, 2}, {initbin.Ended, c.status}}
				if notPid1 {
					want[0].Value = got[0].Value
				}
				if code != c.code || !reflect.DeepEqual(got, want) {
					t.Errorf("exit code %d, records %+v; want %d, %+v", code, got, c.code, want)
				}
			})
		}
	}
}

func TestWithoutReport(t *testing.T) {
	if code := start(t, options{noReport: true}, "sh", "-c", "exit 3").exit(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	// A file at the place of the report pipe is the command's.
	f, err := os.Create(filepath.Join(t.TempDir(), "three"))
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, options{noReport: true, attr: func(c *exec.Cmd) { c.ExtraFiles = []*os.File{f} }}, "sh", "-c", "echo hello >&3")
	code := p.exit()
	if b, err := os.ReadFile(f.Name()); code != 0 || string(b) != "hello\n" || err != nil {
		t.Errorf("exit code %d, file %q, error %v", code, b, err)
	}
}

func TestReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	p := start(t, options{noReport: true, attr: func(c *exec.Cmd) { c.ExtraFiles = []*os.File{w} }}, "sh", "-c", "sleep 0.1; exit 4")
	w.Close()
	if code := p.exit(); code != 4 {
		t.Errorf("exit code %d: the broken report reached the command", code)
	}
}

func TestCannotBeExecuted(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"text": "echo no\n", "plain": "#!/bin/sh\n", "no-interpreter": "#!/no/such/interpreter\n", "windows": "#!/bin/sh\r\necho\r\n",
	} {
		mode := os.FileMode(0o755)
		if name == "plain" {
			mode = 0o644
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		args  []string
		code  int
		errno syscall.Errno
	}{
		{"not there", []string{"/no/such/command"}, 127, unix.ENOENT},
		{"not in PATH", []string{"no-such-command"}, 127, unix.ENOENT},
		{"no name", []string{""}, 127, unix.ENOENT},
		{"no command", nil, 126, unix.EINVAL},
		{"a directory", []string{dir}, 126, unix.EACCES},
		{"below a file", []string{dir + "/text/x"}, 126, unix.ENOTDIR},
		{"not executable", []string{dir + "/plain"}, 126, unix.EACCES},
		{"neither ELF nor script", []string{dir + "/text"}, 126, unix.ENOEXEC},
		{"its interpreter is not there", []string{dir + "/no-interpreter"}, 127, unix.ENOENT},
		{"Windows line endings", []string{dir + "/windows"}, 127, unix.ENOENT},
		{"name too long", []string{"/" + strings.Repeat("x", 300)}, 126, unix.ENAMETOOLONG},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, options{}, c.args...)
			code, got := p.exit(), p.records()
			want := []initbin.Record{{initbin.ExecFailed, uint32(c.errno)}}
			if code != c.code || !reflect.DeepEqual(got, want) || p.out.Len() > 0 {
				t.Errorf("exit code %d, records %+v, output %q; want %d, %+v, none", code, got, p.out, c.code, want)
			}
		})
	}
}

func TestPath(t *testing.T) {
	dir := t.TempDir()
	tool := func(mode os.FileMode, parts ...string) {
		name := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte("#!/bin/sh\necho \"$0\"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	tool(0o755, "a", "tool")
	tool(0o755, "b", "tool")
	tool(0o755, "b", "other")
	tool(0o644, "plain", "tool")
	tool(0o644, "plain", "only")
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	in := func(names ...string) string {
		for i, n := range names {
			names[i] = dir + "/" + n
		}
		return "PATH=" + strings.Join(names, ":")
	}
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		name  string
		env   []string
		tool  string
		out   string // "" is a failure with errno
		errno syscall.Errno
	}{
		{"the first", []string{in("a", "b")}, "tool", dir + "/a/tool", 0},
		{"the second", []string{in("a", "b")}, "other", dir + "/b/other", 0},
		{"past one that may not be executed", []string{in("plain", "b")}, "tool", dir + "/b/tool", 0},
		{"only one that may not be executed", []string{in("plain", "none")}, "only", "", unix.EACCES},
		{"past what is no directory", []string{in("a/tool", "b")}, "tool", dir + "/b/tool", 0},
		{"past a loop", []string{in("loop", "b")}, "tool", dir + "/b/tool", 0},
		{"past what is too long", []string{in(long, "b")}, "tool", dir + "/b/tool", 0},
		{"a command that is too long", []string{in("b")}, long, "", unix.ENOENT},
		{"an empty element", []string{"PATH=/none:"}, "tool", "./tool", 0},
		{"an empty element first", []string{"PATH=:/none"}, "tool", "./tool", 0},
		{"a trailing slash", []string{in("a/")}, "tool", dir + "/a//tool", 0},
		{"not there", []string{in("a", "b")}, "none", "", unix.ENOENT},
		{"others that begin alike", []string{"PAT=1", "PATHS=" + dir + "/a", "P", in("b")}, "tool", dir + "/b/tool", 0},
		{"no PATH", []string{"X=1"}, "true", "-", 0},
		{"an empty PATH", []string{"PATH="}, "true", "-", 0},
		{"the working directory is not in the default", []string{"PATH="}, "tool", "", unix.ENOENT},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, options{env: c.env, dir: dir + "/a"}, c.tool)
			code, got := p.exit(), p.records()
			if c.out == "" {
				if want := []initbin.Record{{initbin.ExecFailed, uint32(c.errno)}}; !reflect.DeepEqual(got, want) {
					t.Errorf("records %+v, want %+v; output %q", got, want, p.out)
				}
				return
			}
			out := strings.TrimSpace(p.out.String())
			if out == "tool" { // the kernel hands a script the path that it was executed by
				out = "./tool"
			}
			if code != 0 || c.out != "-" && out != c.out {
				t.Errorf("exit code %d, output %q, records %+v; want 0 and %q", code, out, got, c.out)
			}
		})
	}
}

func TestArgumentsAndEnvironment(t *testing.T) {
	args := []string{helper(t), "", "a b", "two\nlines", "--", "-x", "ü", strings.Repeat("long ", 10000)}
	env := []string{helperEnv + "=show", "EMPTY=", "A=1", "Z=a=b\nc"}
	p := start(t, options{env: env}, args...)
	if code := p.exit(); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.out)
	}
	var got [][]string
	if err := json.Unmarshal(p.out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if want := [][]string{args, env}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSignals(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, options{env: append(os.Environ(), helperEnv+"=signals"), stdout: w}, helper(t))
	w.Close()
	p.executed()
	lines := bufio.NewScanner(r)
	next := func() string {
		for lines.Scan() {
			// Go's own runtime sends itself SIGURG.
			if lines.Text() != strconv.Itoa(int(unix.SIGURG)) {
				return lines.Text()
			}
		}
		return "the end of the output"
	}
	if l := next(); l != "ready" {
		t.Fatalf("%q", l)
	}
	for n := 1; n <= 64; n++ {
		switch sig := syscall.Signal(n); {
		case sig == unix.SIGKILL, sig == unix.SIGSTOP, sig == unix.SIGCHLD, sig == unix.SIGURG, sig == unix.SIGPROF, n >= 32 && n <= 34:
			// Not to be caught; init's own; the helper's runtime's own.
		default:
			if err := p.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if l := next(); l != strconv.Itoa(n) {
				t.Fatalf("signal %d arrived as %s", n, l)
			}
		}
	}
	// SIGCHLD from outside is not sent on, and does no harm.
	if err := p.cmd.Process.Signal(unix.SIGCHLD); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.children()[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

func TestTermEnds(t *testing.T) {
	p := start(t, options{}, "sleep", "1000")
	p.executed()
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.exit(); code != 143 {
		t.Errorf("exit code %d", code)
	}
	if got, want := p.records(), []initbin.Record{{initbin.Ended, 15}}; !reflect.DeepEqual(got, want) {
		t.Errorf("records %+v, want %+v", got, want)
	}
}

// TestSignalsAreReset starts init with blocked and ignored signals: the command has neither.
func TestSignalsAreReset(t *testing.T) {
	image := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(image, initbin.ELF(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `trap "" HUP INT TERM PIPE CHLD USR1; exec "$0" grep -E "^Sig(Blk|Ign)" /proc/self/status`, image).Output()
	if err != nil {
		t.Fatal(err)
	}
	zero := "0000000000000000"
	want := "SigBlk:\t" + zero + "\nSigIgn:\t" + zero + "\n"
	if string(out) != want {
		t.Errorf("the command has\n%swant\n%s", out, want)
	}
}

func TestReaps(t *testing.T) {
	for _, notPid1 := range []bool{false, true} {
		t.Run(fmt.Sprintf("pid 1 %v", !notPid1), func(t *testing.T) {
			in, hold, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			out, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			p := start(t, options{notPid1: notPid1, env: append(os.Environ(), helperEnv+"=orphans"), stdin: in, stdout: w}, helper(t))
			w.Close()
			if l, err := bufio.NewReader(out).ReadString('\n'); l != "ready\n" {
				t.Fatalf("%q, %v", l, err)
			}
			eventually(t, "the command is init's only child", func() bool { return len(p.children()) == 1 })
			hold.Close()
			if code := p.exit(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// TestEndsWithTheCommand: a process that outlives the command is killed with pid 1.
func TestEndsWithTheCommand(t *testing.T) {
	mark := fmt.Sprintf("%d.5", 100000+os.Getpid())
	p := start(t, options{}, "sh", "-c", "setsid sleep "+mark+" >/dev/null 2>&1 & echo started")
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if out, err := exec.CommandContext(t.Context(), "pgrep", "-f", "sleep "+mark).Output(); err == nil {
		t.Errorf("left over: %s", out)
	}
}

func TestStreamsAreTheCommandsAlone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, options{stdout: w}, "sh", "-c", "echo x; exec >&- 2>&-; exec sleep 1000")
	w.Close()
	// This ends, while the command runs.
	if b, err := io.ReadAll(r); string(b) != "x\n" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	for fd := range 4 {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.cmd.Process.Pid, fd))
		if open := err == nil; open != (fd == initbin.ReportFD) {
			t.Errorf("descriptor %d of init is open: %v", fd, open)
		}
	}
}

// TestHidden: a process of the same user can neither look into init nor get at its image.
func TestHidden(t *testing.T) {
	needsRoot(t)
	for _, script := range []string{"readlink /proc/$PPID/exe", "ls /proc/$PPID/fd", "cat /proc/$PPID/maps", "cat /proc/$PPID/environ", "cat /proc/$PPID/mem", "cat /proc/$PPID/exe", "ls /proc/$PPID/root/"} {
		p := start(t, options{notPid1: true, attr: func(c *exec.Cmd) {
			c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		}}, "sh", "-c", script)
		code := p.exit()
		if code == 0 || !strings.Contains(p.out.String(), "Permission denied") && code != 1 {
			t.Errorf("%s: exit code %d, output %q", script, code, p.out)
		}
	}
}

func TestImageCannotBeChanged(t *testing.T) {
	f, err := initbin.Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v", err)
	}
	fd := int(f.Fd())
	if m, err := unix.Mmap(fd, 0, 1, unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("mapped for writing: %v, %v", m, err)
	}
	info, err := f.Stat()
	if err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil || !bytes.Equal(got, initbin.ELF()) {
		t.Errorf("it holds %d bytes, not the image; error %v", len(got), err)
	}
	p := start(t, options{}, "sleep", "1000")
	p.executed()
	exe, err := os.OpenFile(fmt.Sprintf("/proc/%d/exe", p.cmd.Process.Pid), os.O_RDWR, 0)
	if err == nil {
		_, err = exe.Write([]byte("x"))
		exe.Close()
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("/proc/PID/exe could be written: %v", err)
	}
}

func TestMemory(t *testing.T) {
	if n := len(initbin.ELF()); n > 4096 {
		t.Errorf("the image has %d bytes; it should fit into a page", n)
	}
	p := start(t, options{env: []string{"PATH=/usr/bin:/bin"}}, "sleep", "1000")
	p.executed()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	kib := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+): +(\d+) kB`).FindAllStringSubmatch(string(b), -1) {
		kib[m[1]], _ = strconv.Atoi(m[2])
	}
	t.Logf("%v", kib)
	if kib["Rss"] == 0 || kib["Rss"] > 64 || kib["Anonymous"] > 32 {
		t.Errorf("KiB of memory: %v; want at most 64 resident, 32 of its own: the pages of its arguments and environment count", kib)
	}
}

func TestTerminal(t *testing.T) {
	for _, c := range []struct {
		name, script, send, want string
		code                     int
	}{
		{"reads", `read x; echo "got $x"`, "hello\n", "got hello", 0},
		{"interrupt", `trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done`, "\x03", "interrupted", 9},
		{"quit kills", `echo ready; exec sleep 1000`, "\x1c", "", 131},
		{"foreground", `ps -o stat= -p $$; [ "$(ps -o tpgid= -p $$)" -eq "$(ps -o pgid= -p $$)" ] && echo in front`, "", "in front", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			master, slave := pty(t)
			p := start(t, options{stdin: slave, stdout: slave, attr: func(cmd *exec.Cmd) {
				cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
				// The pid namespace would hide the process from ps, which reads the host's /proc.
				cmd.SysProcAttr.Cloneflags = 0
			}}, "sh", "-c", c.script)
			slave.Close()
			p.executed()
			var out bytes.Buffer
			done := make(chan struct{})
			go func() {
				defer close(done)
				b := make([]byte, 100)
				for {
					n, err := master.Read(b)
					out.Write(b[:n])
					if strings.Contains(string(b[:n]), "ready") || strings.HasPrefix(c.send, "h") && out.Len() == 0 {
						_, _ = master.WriteString(c.send)
					}
					if err != nil {
						return
					}
				}
			}()
			if strings.HasPrefix(c.send, "h") {
				_, _ = master.WriteString(c.send)
			}
			code := p.exit()
			<-done
			if code != c.code || !strings.Contains(out.String(), c.want) {
				t.Errorf("exit code %d, output %q; want %d and %q", code, out.String(), c.code, c.want)
			}
		})
	}
}

// pty opens a terminal.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
