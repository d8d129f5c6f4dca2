package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// start measures one /bin/true after another.
func (b *bench) start(ctx context.Context) error {
	crun, err := newCrun(ctx, b.bed)
	if err != nil {
		return err
	}
	defer crun.close()
	samples, err := interleave(ctx, []contender{
		{"fork and exec, no container", b.times(200), func(ctx context.Context, _ int) error {
			return exec.CommandContext(ctx, "/bin/busybox", "true").Run()
		}},
		{"berth", b.times(200), func(ctx context.Context, i int) error { return b.bed.runEngine(ctx, "seq"+round(i), "/bin/true") }},
		{"runc", b.times(60), func(ctx context.Context, i int) error { return b.bed.runRunc(ctx, i, b.bed.bundle) }},
		{"crun", b.times(60), func(context.Context, int) error { return crun.run() }},
		{"podman run", b.times(15), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, append(b.bed.podman(), "run", "--rm", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--network=none", imageName, "/bin/true")...)
		}},
		{"docker run", b.times(20), func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, "docker", "run", "--rm", "--network=none", imageName, "/bin/true")
		}},
	})
	if err != nil {
		return err
	}
	table("One after another: /bin/true in a fresh container, hardened, with seccomp", "berth", samples)
	return nil
}

// round makes a part of an id of a round, which is negative in the warm-up.
func round(i int) string {
	if i < 0 {
		return "w" + strconv.Itoa(-i)
	}
	return strconv.Itoa(i)
}

func (b *bed) runRunc(ctx context.Context, i int, bundle string) error {
	return b.withRoot(i, bundle, func() error {
		return b.command(ctx, "runc", "--root", filepath.Join(b.dir, "runc"), "run", "--bundle", bundle, fmt.Sprint("b", round(i), filepath.Base(bundle)))
	})
}

// crun runs in a mount namespace of its own in which /sys/fs/cgroup/unified is not mounted: crun 1.8 refuses a
// host with both cgroup versions otherwise. The helper process runs one container for each line that it reads.
type crun struct {
	cmd *exec.Cmd
	in  *os.File
	out *os.File
}

func newCrun(_ context.Context, bed *bed) (*crun, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("unshare", "--mount", "/proc/self/exe", crunHelper, bed.bundle, filepath.Join(bed.dir, "crun"), bed.dir) //nolint:noctx // ended by close
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd.Args[2] = self
	cmd.Args = append(cmd.Args, bed.layers...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, _ = inR.Close(), outW.Close()
	return &crun{cmd, inW, outR}, nil
}

func (c *crun) run() error {
	if _, err := c.in.WriteString("x"); err != nil {
		return err
	}
	var b [1]byte
	if _, err := c.out.Read(b[:]); err != nil {
		return fmt.Errorf("crun: %w", err)
	}
	if b[0] != 'k' {
		return fmt.Errorf("crun failed; see above")
	}
	return nil
}

func (c *crun) close() {
	_ = c.in.Close()
	_ = c.cmd.Wait()
}

func crunMain(args []string) {
	_ = unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
	bed := &bed{bundle: args[0], dir: args[2], layers: args[3:]}
	var x [1]byte
	for i := 0; ; i++ {
		if n, _ := os.Stdin.Read(x[:]); n == 0 {
			return
		}
		err := bed.withRoot(1_000_000+i, bed.bundle, func() error {
			return bed.command(context.Background(), "crun", "--root", args[1], "run", "--bundle", bed.bundle, fmt.Sprint("c", i))
		})
		answer := "k"
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			answer = "f"
		}
		_, _ = os.Stdout.WriteString(answer)
	}
}

// atOnce measures how many containers a second each runs, at several numbers in parallel.
func (b *bench) atOnce(ctx context.Context) error {
	fmt.Printf("\nAt once: containers a second\n%-34s", "in parallel")
	levels := []int{1, 2, 4, 8, 16}
	for _, l := range levels {
		fmt.Printf(" %8d", l)
	}
	fmt.Printf(" %8s\n", "best")
	bundles := make([]string, slots)
	for i := range bundles {
		bundles[i] = filepath.Join(b.bed.dir, fmt.Sprint("bundle-", i))
		if err := b.bed.copyBundle(bundles[i]); err != nil {
			return err
		}
	}
	var ids atomic.Int64
	best := map[string]float64{}
	for _, c := range []struct {
		name string
		n    int
		do   func(ctx context.Context, slot int) error
	}{
		{"fork and exec, no container", 400, func(ctx context.Context, _ int) error { return exec.CommandContext(ctx, "/bin/busybox", "true").Run() }},
		{"berth", 200, func(ctx context.Context, _ int) error {
			return b.bed.runEngine(ctx, fmt.Sprint("par", ids.Add(1)), "/bin/true")
		}},
		{"runc", 100, func(ctx context.Context, slot int) error { return b.bed.runRunc(ctx, int(ids.Add(1)), bundles[slot]) }},
		{"docker run", 32, func(ctx context.Context, _ int) error {
			return b.bed.command(ctx, "docker", "run", "--rm", "--network=none", imageName, "/bin/true")
		}},
	} {
		fmt.Printf("%-34s", c.name)
		for _, l := range levels {
			rate, err := perSecond(ctx, b.times(c.n), l, c.do)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			best[c.name] = max(best[c.name], rate)
			fmt.Printf(" %8.1f", rate)
		}
		fmt.Printf(" %8.1f\n", best[c.name])
	}
	fmt.Printf("berth's best rate: %.1f times Docker's, %.1f times runc's\n", best["berth"]/best["docker run"], best["berth"]/best["runc"])
	return nil
}

const slots = 16

func perSecond(ctx context.Context, n, parallel int, do func(context.Context, int) error) (float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, parallel)
	begin := time.Now()
	for slot := range parallel {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				if err := do(ctx, slot); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(n) / time.Since(begin).Seconds(), nil
	}
}

func (b *bed) copyBundle(to string) error {
	if err := os.MkdirAll(filepath.Join(to, "rootfs"), 0o700); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(b.bundle, "config.json"))
	if err != nil {
		return err
	}
	raw = []byte(replaceOnce(string(raw), filepath.Join(b.bundle, "rootfs"), filepath.Join(to, "rootfs")))
	return os.WriteFile(filepath.Join(to, "config.json"), raw, 0o600)
}
