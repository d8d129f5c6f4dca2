package docker_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// TestPurge: what is left of a sandbox goes by its labels, containers, volumes and networks, and nothing else of this owner's
// or of another's.
func TestPurge(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	purges(t, e, img, daemon(t).Host())
}

func TestPurgePodman(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: podman(t).Host()})
	purges(t, e, img, podman(t).Host())
}

func purges(t *testing.T, e *docker.Engine, img berth.Image, host string) {
	t.Helper()
	api, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	sandbox, other := berth.NewID(), berth.NewID()
	live, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = live.Close(context.Background()) })
	sets := []struct {
		name   string
		labels map[string]string
		gone   bool
	}{
		{"mine", map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: sandbox, docker.LabelStep: "s"}, true},
		{"stepless", map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: sandbox}, true},
		{"of-another-sandbox", map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: other}, false},
		{"of-a-live-one", map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: live.ID()}, false},
		{"of-another-owner", map[string]string{docker.LabelOwner: "other-owner", docker.LabelSandbox: sandbox, docker.LabelStep: "s"}, false},
		{"of-nobody", map[string]string{docker.LabelSandbox: sandbox}, false},
	}
	var want []string
	for _, set := range sets {
		name := "purge-" + sandbox + "-" + set.name
		made, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Name: name, Config: &container.Config{Image: img.ID, Cmd: []string{"sleep", "1000"}, Labels: set.labels}, HostConfig: &container.HostConfig{NetworkMode: "none"},
		})
		if err != nil {
			t.Fatal(err)
		}
		vol, err := api.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: name, Labels: set.labels})
		if err != nil {
			t.Fatal(err)
		}
		net, err := api.NetworkCreate(t.Context(), name, client.NetworkCreateOptions{Driver: "bridge", Internal: true, Labels: set.labels})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx := context.Background()
			_, _ = api.ContainerRemove(ctx, made.ID, client.ContainerRemoveOptions{Force: true})
			_, _ = api.VolumeRemove(ctx, vol.Volume.Name, client.VolumeRemoveOptions{})
			_, _ = api.NetworkRemove(ctx, net.ID, client.NetworkRemoveOptions{})
		})
		if set.name == "mine" {
			if _, err := api.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if !set.gone {
			want = append(want, "container "+set.name, "network "+set.name, "volume "+set.name)
		}
	}
	orphans, err := e.Orphans(t.Context())
	ids := []string{sandbox, other}
	slices.Sort(ids)
	if err != nil || !slices.Equal(orphans, ids) {
		t.Errorf("orphans %v, %v; want %v", orphans, err, ids)
	}
	if was, err := e.Purge(t.Context(), sandbox); !was || err != nil {
		t.Errorf("purge: %v, %v", was, err)
	}
	if was, err := e.Purge(t.Context(), sandbox); was || err != nil {
		t.Errorf("again: %v, %v", was, err)
	}
	slices.Sort(want)
	if have := named(t, api, "purge-"+sandbox+"-"); !slices.Equal(have, want) {
		t.Errorf("there is\n%q, want\n%q", have, want)
	}
}

// TestPurgeInherited: what somebody runs of an image that was made of a task's container has the task's labels, and
// stays: when the sandbox is closed, and when what is left is looked for.
func TestPurgeInherited(t *testing.T) {
	t.Parallel()
	leavesOthers(t, daemon(t).Host())
}

func TestPurgeInheritedPodman(t *testing.T) {
	t.Parallel()
	leavesOthers(t, podman(t).Host())
}

func leavesOthers(t *testing.T, host string) {
	t.Helper()
	e, img := newEngine(t, docker.Config{Host: host})
	api, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	wait(t, step(t, s, img, "true"))
	of := "berth-" + e.Owner() + "-" + s.ID()
	there := named(t, api, of)
	if len(there) != 1 {
		t.Fatalf("containers of the task: %q", there)
	}
	_, rest, _ := strings.Cut(there[0], " ")
	ref := "localhost/" + s.ID() + ":1"
	made, err := api.ContainerCommit(t.Context(), of+rest, client.ContainerCommitOptions{Reference: ref, Config: &container.Config{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = api.ImageRemove(context.Background(), made.ID, client.ImageRemoveOptions{Force: true}) })
	own, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Name: "own-" + s.ID(), Config: &container.Config{Image: ref, Entrypoint: []string{"sleep"}, Cmd: []string{"1000"}}, HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = api.ContainerRemove(context.Background(), own.ID, client.ContainerRemoveOptions{Force: true})
	})
	if _, err := api.ContainerStart(t.Context(), own.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := api.ContainerInspect(t.Context(), own.ID, client.ContainerInspectOptions{})
	if err != nil || got.Container.Config.Labels[docker.LabelSandbox] != s.ID() {
		t.Fatalf("it has the labels %v, %v", got.Container.Config, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); len(named(t, api, of)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the task's own container is left")
		}
	}
	if all, err := e.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("there is %v, %v", all, err)
	}
	if orphans, err := e.Orphans(t.Context()); err != nil || len(orphans) > 0 {
		t.Errorf("orphans %q, %v", orphans, err)
	}
	if was, err := e.Purge(t.Context(), s.ID()); was || err != nil {
		t.Errorf("purge: %v, %v", was, err)
	}
	got, err = api.ContainerInspect(t.Context(), own.ID, client.ContainerInspectOptions{})
	if err != nil || !got.Container.State.Running {
		t.Errorf("somebody's own container does not run any more: %+v, %v", got.Container.State, err)
	}
}

// named lists what a daemon has whose name begins so.
func named(t *testing.T, api *client.Client, prefix string) (all []string) {
	t.Helper()
	add := func(kind, name string) {
		if rest, ok := strings.CutPrefix(strings.TrimPrefix(name, "/"), prefix); ok {
			all = append(all, kind+" "+rest)
		}
	}
	// Podman's lists fail where another test's container is being removed.
	var cs client.ContainerListResult
	var ns client.NetworkListResult
	until(t, "Podman lists", func() (ok bool) {
		var cerr, nerr error
		cs, cerr = api.ContainerList(t.Context(), client.ContainerListOptions{All: true})
		ns, nerr = api.NetworkList(t.Context(), client.NetworkListOptions{})
		return cerr == nil && nerr == nil
	})
	for _, c := range cs.Items {
		add("container", c.Names[0])
	}
	vs, err := api.VolumeList(t.Context(), client.VolumeListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs.Items {
		add("volume", v.Name)
	}
	for _, n := range ns.Items {
		add("network", n.Name)
	}
	slices.Sort(all)
	return all
}
