package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

const dockerHelper = "docker-helper"

func (b *bed) dockerHost() string { return "unix://" + filepath.Join(b.dir, "docker.sock") }

func (b *bed) dockerEngine(host, dir string) (*docker.Engine, error) {
	return docker.New(docker.Config{Host: host, Dir: dir, Keeper: []string{b.berth}, Idle: time.Second})
}

// docker measures a task on the Docker daemon beside the same request by plain calls of the client, docker run and
// Podman. What is berth's own of a task is all of its time in which the daemon is not busy with what every client has to
// ask it for: to make, start and remove the container, and to say when it has ended. The daemon's own time differs by
// far more from one container to the next.
func (b *bench) docker(ctx context.Context) (err error) {
	sock := filepath.Join(b.bed.dir, "between.sock")
	seen, err := newBetween(ctx, sock, strings.TrimPrefix(b.bed.dockerHost(), "unix://"))
	if err != nil {
		return err
	}
	defer seen.close()
	e, err := b.bed.dockerEngine("unix://"+sock, filepath.Join(b.bed.dir, "docker-engine"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	img, err := e.Image(ctx, berth.ImageRequest{Ref: imageName})
	if err != nil {
		return err
	}
	api, err := client.New(client.WithHost("unix://" + sock))
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }()
	same, err := askedFor(ctx, e, api, img, b.bed.dir)
	if err != nil {
		return err
	}
	own, share := map[string]*sample{}, map[string]float64{}
	apart := func(name string, do func(i int) error) func(context.Context, int) error {
		own[name] = &sample{name: name}
		return func(_ context.Context, i int) error {
			seen.take()
			begin := time.Now()
			if err := do(i); err != nil {
				return err
			}
			whole := time.Since(begin)
			daemons := daemons(seen.take())
			if i >= 0 {
				own[name].took = append(own[name].took, whole-daemons)
				share[name] += float64(whole-daemons) / float64(daemons)
			}
			return nil
		}
	}
	const calls, task = "the same by the client's calls", "berth on Docker"
	samples, err := interleave(ctx, []contender{
		{calls, b.times(60), apart(calls, func(i int) error { return plainCalls(ctx, api, same, "plain"+round(i)) })},
		{task, b.times(60), apart(task, func(i int) error { return runTask(ctx, e, img, "seq"+round(i), "true") })},
		{"docker run", b.times(20), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, "docker", "run", "--rm", "--init", "--network=none", imageName, "/bin/true")
		}},
		{"podman run", b.times(15), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, append(b.bed.podman(), "run", "--rm", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--network=none", imageName, "/bin/true")...)
		}},
	})
	if err != nil {
		return err
	}
	table("On Docker, one after another: /bin/true in a fresh container", calls, samples)
	fmt.Printf("\nOf it not the daemon's\n%-34s %10s %10s %8s %12s\n", "", "median ms", "p99 ms", "n", "% daemon's")
	for _, name := range []string{calls, task} {
		s := own[name]
		fmt.Printf("%-34s %10s %10s %8d %12.1f\n", name, ms(s.median()), ms(s.quantile(0.99)), len(s.took), 100*share[name]/float64(len(s.took)))
	}
	fmt.Printf("berth's own: %s ms a task more than the client's calls (goals: 5 ms, and 3 %% of the daemon's time)\n", ms(own[task].median()-own[calls].median()))
	return nil
}

// runTask runs one task through an engine, from opening its sandbox to nothing being left of it.
func runTask(ctx context.Context, e berth.Engine, img berth.Image, id string, command ...string) error {
	sb, err := e.Open(ctx, berth.SandboxSpec{ID: id})
	if err != nil {
		return err
	}
	c, err := sb.Start(ctx, berth.StepSpec{ID: "s", Image: img, Command: command})
	if err != nil {
		return err
	}
	x, err := c.Wait(ctx)
	if err != nil {
		return err
	}
	if !x.OK() {
		return fmt.Errorf("%s: %s %d %s", id, x.Reason, x.Code, x.Detail)
	}
	return sb.Close(ctx)
}

// askedFor is what berth asks the daemon for to run /bin/true. Files that it mounts are copied into dir.
func askedFor(ctx context.Context, e *docker.Engine, api *client.Client, img berth.Image, dir string) (opts client.ContainerCreateOptions, err error) {
	sb, err := e.Open(ctx, berth.SandboxSpec{ID: "asked"})
	if err != nil {
		return opts, err
	}
	defer func() { err = errors.Join(err, sb.Close(ctx)) }()
	if _, err := sb.Start(ctx, berth.StepSpec{ID: "s", Image: img, Command: []string{"true"}}); err != nil {
		return opts, err
	}
	c, err := api.ContainerInspect(ctx, "berth-"+e.Owner()+"-asked-s", client.ContainerInspectOptions{})
	if err != nil {
		return opts, err
	}
	opts.Config, opts.HostConfig = c.Container.Config, c.Container.HostConfig
	opts.Config.Labels = nil // nothing of berth's own
	for i, m := range opts.HostConfig.Mounts {
		raw, err := os.ReadFile(m.Source)
		if err != nil {
			return opts, err
		}
		file := filepath.Join(dir, filepath.Base(m.Source))
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			return opts, err
		}
		opts.HostConfig.Mounts[i].Source = file
	}
	opts.HostConfig.CgroupParent = "" // nor in a cgroup that it makes to read what was used
	return opts, nil
}

// plainCalls are the fewest calls that run a container and read all that it writes.
func plainCalls(ctx context.Context, api *client.Client, opts client.ContainerCreateOptions, name string) error {
	opts.Name = name
	c, err := api.ContainerCreate(ctx, opts)
	if err != nil {
		return err
	}
	out, err := api.ContainerAttach(ctx, c.ID, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := api.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil {
		return err
	}
	wait := api.ContainerWait(ctx, c.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	if _, err := io.Copy(io.Discard, out.Reader); err != nil {
		return err
	}
	select {
	case end := <-wait.Result:
		if end.StatusCode != 0 {
			return fmt.Errorf("%s: exit code %d", name, end.StatusCode)
		}
	case err := <-wait.Error:
		return err
	}
	_, err = api.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return err
}

// dockerMemory measures what a process holds of each task that it runs on Docker, and what the keeper does, which sees
// those of other processes to their end.
func (b *bench) dockerMemory(ctx context.Context) (err error) {
	n := b.times(100)
	dir := filepath.Join(b.bed.dir, "docker-memory")
	e, err := b.bed.dockerEngine(b.bed.dockerHost(), dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, dockerHelper, b.bed.dockerHost(), dir, b.bed.berth, strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { // all of the data directory's, whoever started it
		_ = in.Close()
		_ = cmd.Wait()
		err = errors.Join(err, closeAll(context.WithoutCancel(ctx), e))
	}()
	lines := bufio.NewScanner(out)
	var keeper int
	held := map[string]map[string]int64{}
	read := func(name string, pid int) {
		if err == nil {
			held[name], err = smaps(pid)
		}
	}
	if !lines.Scan() {
		return errors.New("the helper ended")
	}
	if keeper, err = processOf(docker.KeeperName, dir); err != nil {
		return err
	}
	time.Sleep(settle)
	read("a process, idle", cmd.Process.Pid)
	read("the keeper, idle", keeper)
	if _, err := io.WriteString(in, "go on\n"); err != nil {
		return err
	}
	if !lines.Scan() {
		return errors.New("the helper ended")
	}
	time.Sleep(settle)
	running := fmt.Sprintf(", %d tasks", n)
	read("a process"+running, cmd.Process.Pid)
	if err := errors.Join(err, cmd.Process.Kill()); err != nil {
		return err
	}
	if err := wait(ctx, "the keeper", func() error { return watches(keeper, n) }); err != nil {
		return err
	}
	time.Sleep(settle)
	read("the keeper"+running, keeper)
	if err != nil {
		return err
	}
	fmt.Printf("\nMemory on Docker, KiB (goal: 1024 for each task)\n%-34s %10s %10s %10s\n", "", "RSS", "PSS", "each task")
	for _, who := range []string{"a process", "the keeper"} {
		idle, full := held[who+", idle"], held[who+running]
		fmt.Printf("%-34s %10d %10d\n", who+", idle", idle["Rss"], idle["Pss"])
		fmt.Printf("%-34s %10d %10d %10d\n", who+running, full["Rss"], full["Pss"], (full["Rss"]-idle["Rss"])/int64(n))
	}
	return nil
}

// watches is no error if a process holds the locks of n steps.
func watches(pid, n int) error {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err
	}
	have := 0
	for _, f := range all {
		if to, err := os.Readlink(f); err == nil && filepath.Base(to) == "lock" {
			have++
		}
	}
	if have < n {
		return fmt.Errorf("it watches %d of %d tasks", have, n)
	}
	return nil
}

// closeAll ends everything of a data directory's.
func closeAll(ctx context.Context, e berth.Engine) error {
	all, err := e.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Container != "" {
			continue
		}
		sb, err := e.Attach(ctx, s.Sandbox)
		if err == nil {
			err = sb.Close(ctx)
		}
		if err != nil && !errors.Is(err, berth.ErrNotFound) {
			return err
		}
	}
	return nil
}

// dockerHelperMain is a process that runs one task, and, told to, as many at once as it is to.
func dockerHelperMain(host, dir, bin, many string) error {
	ctx := context.Background()
	n, err := strconv.Atoi(many)
	if err != nil {
		return err
	}
	e, err := docker.New(docker.Config{Host: host, Dir: dir, Keeper: []string{bin}})
	if err != nil {
		return err
	}
	img, err := e.Image(ctx, berth.ImageRequest{Ref: imageName})
	if err != nil {
		return err
	}
	start := func(id string, command ...string) (berth.Container, error) {
		sb, err := e.Open(ctx, berth.SandboxSpec{ID: id, Labels: map[string]string{docker.LabelResume: "1"}})
		if err != nil {
			return nil, err
		}
		return sb.Start(ctx, berth.StepSpec{ID: "s", Image: img, Command: command})
	}
	c, err := start("warm", "true")
	if err != nil {
		return err
	}
	if _, err := c.Wait(ctx); err != nil {
		return err
	}
	fmt.Println("idle")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for i := range n {
		if _, err := start("mem"+strconv.Itoa(i), "sleep", "1000"); err != nil {
			return err
		}
	}
	fmt.Println("running")
	_, err = io.Copy(io.Discard, os.Stdin) // until it is killed
	return err
}

// dockerOutput measures the output of a container on Docker.
func (b *bench) dockerOutput(ctx context.Context) error {
	mib := int64(1 << 10)
	if b.quick {
		mib /= 8
	}
	write := []string{"dd", "if=/dev/zero", "bs=65536", "count=" + strconv.FormatInt(mib*16, 10)}
	fmt.Printf("\n%d MiB of output of a container on Docker, to a pipe\n%-34s %10s %10s %14s\n", mib, "", "seconds", "MiB/s", "CPU s of it")
	best, own := 0.0, 0.0
	for _, c := range []struct {
		name string
		argv []string
	}{
		{"docker run", []string{"docker", "run", "--rm", "--init", "--network=none", imageName}},
		{"docker run, log driver local", []string{"docker", "run", "--rm", "--init", "--network=none", "--log-driver=local", imageName}},
		{"berth run --engine docker", []string{b.bed.berth, "run", "--engine", "docker", imageName}},
		{"podman run", append(b.bed.podman(), "run", "--rm", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--network=none", imageName)},
	} {
		wall, cpu, err := drain(ctx, b.bed.env, append(c.argv, write...), mib<<20)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		rate := float64(mib) / wall.Seconds()
		switch {
		case strings.HasPrefix(c.name, "docker"):
			best = max(best, rate)
		case strings.HasPrefix(c.name, "berth"):
			own = rate
		}
		fmt.Printf("%-34s %10.2f %10.1f %14.2f\n", c.name, wall.Seconds(), rate, cpu.Seconds())
	}
	fmt.Printf("berth's rate: %.0f %% of docker run's best (goal: 80 %%)\n", 100*own/best)
	return nil
}
