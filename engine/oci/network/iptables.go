package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"

	"github.com/berth-project/berth"
)

// chain is the name of our chains in iptables' tables nat and filter.
const chain = "BERTH"

// iptables is the path of the program.
type iptables string

// findIptables finds the program, also where the search path has no directories for root.
func findIptables() iptables {
	for _, name := range []string{"iptables", "/usr/sbin/iptables", "/sbin/iptables"} {
		if path, err := exec.LookPath(name); err == nil {
			return iptables(path)
		}
	}
	return "iptables"
}

// iptablesForwards reports whether iptables has a say in what the host forwards: its rules, or its policy,
// may drop what ours accept.
func iptablesForwards(ctx context.Context) bool {
	if b, err := os.ReadFile("/proc/net/ip_tables_names"); err == nil && strings.Contains(string(b), "filter") {
		return true
	}
	c, err := nftables.New()
	if err != nil {
		return false
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false
	}
	for _, ch := range chains {
		if ch.Table.Name == "filter" && ch.Name == "FORWARD" {
			return true
		}
	}
	return ctx.Err() != nil
}

// rules tells iptables what Host.rules says, with the address translation or without.
func (p iptables) rules(ctx context.Context, subnet netip.Prefix, nat bool) error {
	if err := p.run(ctx, "-t", "filter", "-S", chain); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("packet filter rules: %w: there is no iptables program: apt-get install iptables", berth.ErrUnsupported)
		}
		links := linkPrefix + "+"
		for _, rule := range [][]string{
			{"-N", chain},
			{"-A", chain, "-i", links, "-o", links, "-j", "DROP"},
			{"-A", chain, "-i", links, "-j", "ACCEPT"},
			{"-A", chain, "-o", links, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
			{"-A", chain, "-o", links, "-j", "DROP"},
		} {
			if err := p.run(ctx, append([]string{"-t", "filter"}, rule...)...); err != nil {
				return err
			}
		}
	}
	// Others may have put theirs before ours, or flushed the chain.
	_ = p.run(ctx, "-t", "filter", "-D", "FORWARD", "-j", chain)
	if err := p.run(ctx, "-t", "filter", "-I", "FORWARD", "-j", chain); err != nil || !nat {
		return err
	}
	masquerade := []string{"-s", subnet.String(), "!", "-o", linkPrefix + "+", "-j", "MASQUERADE"}
	if p.run(ctx, "-t", "nat", "-S", chain) != nil {
		if err := p.run(ctx, "-t", "nat", "-N", chain); err != nil {
			return err
		}
		if err := p.run(ctx, "-t", "nat", "-A", "POSTROUTING", "-j", chain); err != nil {
			return err
		}
	}
	if p.run(ctx, append([]string{"-t", "nat", "-C", chain}, masquerade...)...) == nil {
		return nil
	}
	return p.run(ctx, append([]string{"-t", "nat", "-A", chain}, masquerade...)...)
}

// remove removes our chains, and reports whether there were some.
func (p iptables) remove(ctx context.Context) (did bool, err error) {
	var errs []error
	for _, t := range []struct{ table, from string }{{"filter", "FORWARD"}, {"nat", "POSTROUTING"}} {
		if p.run(ctx, "-t", t.table, "-S", chain) != nil {
			continue
		}
		did = true
		_ = p.run(ctx, "-t", t.table, "-D", t.from, "-j", chain)
		errs = append(errs, p.run(ctx, "-t", t.table, "-F", chain), p.run(ctx, "-t", t.table, "-X", chain))
	}
	return did, errors.Join(errs...)
}

// run runs the program; it waits for others that are at it.
func (p iptables) run(ctx context.Context, args ...string) error {
	c := exec.CommandContext(ctx, string(p), append([]string{"-w", "10"}, args...)...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
