package docker_test

import (
	"context"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
)

// podman is Podman's API service for all tests, started by the first that needs it.
func podman(t testing.TB) *dockertest.Daemon {
	t.Helper()
	sharedPodman.once.Do(func() {
		sharedPodman.daemon, sharedPodman.err = startPodman()
	})
	if sharedPodman.err != nil {
		t.Fatal("needs Podman:", sharedPodman.err)
	}
	return sharedPodman.daemon
}

func startPodman() (*dockertest.Daemon, error) {
	dir, err := os.MkdirTemp("/var/tmp", "berth-podman-")
	if err != nil {
		return nil, err
	}
	d, err := dockertest.StartPodman(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	return d, importImage(context.Background(), d)
}

// podmanSkips are the checks of what Podman does otherwise.
var podmanSkips = map[string]string{
	"end by signal":                 "Podman's init, catatonit, answers 128+n for a signal and for an exit with that code alike",
	"exec that ends otherwise":      "runc answers 128+n for a signal and for an exit with that code alike; TestPodmanExecEnds has the rest",
	"init":                          "Podman's init is a program that its containers can read",
	"no file of the host":           "Podman binds its init and .containerenv into containers, from the host; TestPodmanDiffers has the rest",
	"environment":                   "Podman keeps variables in a map, and their order is lost; TestPodmanDiffers has the rest",
	"signal dispositions":           "catatonit leaves TSTP, TTIN and TTOU blocked in the command; TestPodmanDiffers has the rest",
	"logs of a flood that are held": "conmon writes to who is attached before it looks whether the container has ended, and waits for who holds the log",
	"lent device in exec":           "Podman gives a further command that runs as another user none of the container's groups",
	"descriptors":                   "catatonit holds a descriptor for signals, which its container can see; TestPodmanDiffers has the rest",
}

// TestPodmanSuite runs the suite that every engine must pass on Podman's API service.
func TestPodmanSuite(t *testing.T) { runSuite(t, podman(t), podmanSkips) }

func TestPodmanExecEnds(t *testing.T) {
	t.Parallel()
	execEnds(t, podman(t).Host(), "Error: runc: exec failed: exec")
}

// TestPodmanDiffers holds what the skipped checks say of all that Podman does as the others do.
func TestPodmanDiffers(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: podman(t).Host()})
	for _, row := range []struct{ name, script, out string }{
		{"environment", "env | grep -vE '^(HOME|HOSTNAME|PATH|PWD|SHLVL)=' | sort", "A=4\nB=a=b\nEMPTY=\nNVIDIA_VISIBLE_DEVICES=void\n"},
		{"signals", "grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2", "0000000000380000\n0000000000000000\n"},
		{"descriptors", "echo /proc/self/fd/*", "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n"},
		{"mounts from the host", "awk '{print $5}' /proc/self/mountinfo | grep -vE '^/($|proc|sys|dev|etc/(hosts|hostname|resolv.conf)$)' | sort", "/run/.containerenv\n/run/podman-init\n"},
	} {
		s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sh", "-c", row.script}, Env: []string{"A=1", "EMPTY=", "B=a=b", "A=4"}})
		if err != nil {
			t.Fatal(err)
		}
		if exit, got := wait(t, c), logs(t, c, false); exit.Code != 0 || got != row.out {
			t.Errorf("%s: exit %+v, %q; want %q", row.name, exit, got, row.out)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestPodmanInfo(t *testing.T) {
	t.Parallel()
	e, _ := newEngine(t, docker.Config{Host: podman(t).Host()})
	info, err := e.Info(t.Context())
	if err != nil || !regexp.MustCompile(`^podman [0-9.]+, conmon [0-9.]+, runc [0-9.+a-z]+$`).MatchString(info.Version) {
		t.Errorf("version %q, error %v", info.Version, err)
	}
}

// TestPodmanVolumesOfOthers: asked for the volumes with two labels, Podman answers with those that have either.
func TestPodmanVolumesOfOthers(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: podman(t).Host()})
	open := func() (berth.Sandbox, berth.Container) {
		s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/etc", CopyUp: true}}})
		if err != nil {
			t.Fatal(err)
		}
		return s, step(t, s, img, "until [ -e /etc/go ]; do sleep 0.05; done; exit 3")
	}
	s, c := open()
	other, _ := open()
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	root, err := s.Volume(t.Context(), "/etc")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := root.WriteFile("go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("exit %+v", exit)
	}
	if got, err := root.ReadFile("enginetest"); string(got) != "image\n" {
		t.Errorf("a volume has %q, error %v, after another sandbox was closed", got, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPodmanAskedOnce: Podman runs programs and asks the package manager to say what it is, which takes it longer than a
// container does.
func TestPodmanAskedOnce(t *testing.T) {
	t.Parallel()
	h := newHanger(t, podman(t).Host())
	var mu sync.Mutex
	var asked []string
	h.answer = func(r *http.Request) {
		if p := r.URL.Path; strings.HasSuffix(p, "/info") || strings.HasSuffix(p, "/version") {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, p)
		}
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := e.Info(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := e.List(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_, c := begin(t, e, img, "until [ -e /go ]; do sleep 0.05; done")
	if _, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"touch", "/go"}}, berth.Stdio{}); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); !exit.OK() {
		t.Errorf("%+v", exit)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"/v1.41/info", "/v4.0.0/libpod/info"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}
