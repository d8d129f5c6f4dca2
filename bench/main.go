// Command bench measures berth beside its peers in one run and prints a table with ratios. See bench/run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == crunHelper {
		crunMain(os.Args[2:])
		return
	}
	if len(os.Args) == 6 && os.Args[1] == dockerHelper {
		if err := dockerHelperMain(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{}
	flag.BoolVar(&b.quick, "quick", false, "fewer repetitions")
	only := flag.String("only", "", "comma-separated `names`: start, once, cli, pull, memory, output, docker, docker-memory, docker-output")
	flag.StringVar(&b.berth, "berth", "bin/berth", "the berth `binary`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := b.run(ctx, strings.FieldsFunc(*only, func(r rune) bool { return r == ',' }))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the benchmarks.
type bench struct {
	quick bool
	berth string
	bed   *bed
}

func (b *bench) run(ctx context.Context, only []string) error {
	bed, err := newBed(ctx, b.berth)
	if err != nil {
		return err
	}
	b.bed = bed
	defer bed.close()
	var errs []error
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"start", b.start},
		{"once", b.atOnce},
		{"cli", b.cli},
		{"pull", b.pull},
		{"memory", b.memory},
		{"output", b.output},
		{"docker", b.docker},
		{"docker-memory", b.dockerMemory},
		{"docker-output", b.dockerOutput},
	} {
		if len(only) > 0 && !slices.Contains(only, part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	return errors.Join(errs...)
}

func (b *bench) times(full int) int {
	if b.quick {
		return max(full/5, 3)
	}
	return full
}

// sample is what was measured of one contender.
type sample struct {
	name string
	took []time.Duration
}

func (s *sample) median() time.Duration { return s.quantile(0.5) }

func (s *sample) quantile(q float64) time.Duration {
	if len(s.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.took))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// contender is something that runs a container; do runs one.
type contender struct {
	name string
	n    int
	do   func(ctx context.Context, i int) error
}

// interleave measures all contenders in turns, so that the noise of the machine meets each alike.
func interleave(ctx context.Context, all []contender) ([]*sample, error) {
	out := make([]*sample, len(all))
	rounds := 0
	for i, c := range all {
		out[i] = &sample{name: c.name}
		rounds = max(rounds, c.n)
		for w := range 2 { // what is made once is not measured
			if err := c.do(ctx, -1-w); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	for r := range rounds {
		for i, c := range all {
			if r*c.n/rounds == (r+1)*c.n/rounds {
				continue
			}
			begin := time.Now()
			if err := c.do(ctx, r); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			out[i].took = append(out[i].took, time.Since(begin))
		}
	}
	return out, nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

// table prints samples with their ratio to the one named base.
func table(title, base string, samples []*sample) {
	var ref time.Duration
	for _, s := range samples {
		if s.name == base {
			ref = s.median()
		}
	}
	fmt.Printf("\n%s\n%-34s %10s %10s %8s %12s\n", title, "", "median ms", "p99 ms", "n", "÷ "+base)
	for _, s := range samples {
		fmt.Printf("%-34s %10s %10s %8d %12.2f\n", s.name, ms(s.median()), ms(s.quantile(0.99)), len(s.took), float64(s.median())/float64(ref))
	}
}
