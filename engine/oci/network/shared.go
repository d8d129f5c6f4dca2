package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lock is held while something that all berths of the host share is changed.
func (h *Host) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(h.opts.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(h.opts.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), context.Cause(ctx)), f.Close())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// forward lets the host pass packets on from the links of its default routes, where it does not already. The
// sandboxes' own links are set when they are made; no others are touched, so that the host does not become a
// router for its neighbours. What was changed is remembered, to be changed back.
func (h *Host) forward() error {
	if all, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || strings.TrimSpace(string(all)) == "1" {
		return err
	}
	for _, name := range uplinks() {
		file := "ipv4/conf/" + name + "/forwarding"
		if b, err := os.ReadFile("/proc/sys/net/" + file); err != nil || strings.TrimSpace(string(b)) == "1" {
			continue
		}
		if err := h.recordForwarding(append(h.forwarding(), name)); err != nil {
			return err
		}
		if err := sysctl(file, "1"); err != nil {
			return fmt.Errorf("enable forwarding: %w", err)
		}
		h.opts.Log.Info("forwarding enabled for sandboxes with network mode bridge; it is disabled again after the last", slog.String("link", name))
	}
	return nil
}

// forwarding are the links on which berth has enabled it.
func (h *Host) forwarding() []string {
	b, _ := os.ReadFile(filepath.Join(h.opts.Dir, "forwarding"))
	return strings.Fields(string(b))
}

func (h *Host) recordForwarding(names []string) error {
	file := filepath.Join(h.opts.Dir, "forwarding")
	if len(names) == 0 {
		err := os.Remove(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	slices.Sort(names)
	return os.WriteFile(file, []byte(strings.Join(slices.Compact(names), "\n")+"\n"), 0o600)
}

// Recover removes the links that the instance's crashed owners left, and what all berths of the host share
// if no sandbox of any needs it. It answers what it removed, in words.
func (h *Host) Recover(ctx context.Context, instance string) ([]string, error) {
	if !canRoute() {
		return nil, nil
	}
	unlock, err := h.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("recover networks: %w", err)
	}
	defer unlock()
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("recover networks: %w", err)
	}
	var removed []string
	var errs []error
	for _, l := range links {
		if _, ours := addrOf(l.Attrs().Name); ours && strings.HasPrefix(l.Attrs().Alias, alias(instance)) {
			if err := netlink.LinkDel(l); err != nil && !gone(err) {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, "link "+l.Attrs().Name)
		}
	}
	more, err := h.tidy(ctx)
	return append(removed, more...), errors.Join(append(errs, err)...)
}

// tidy removes the rules and changes forwarding back if no sandbox is left. The lock is held.
func (h *Host) tidy(ctx context.Context) (removed []string, err error) {
	if left, err := plugged(); err != nil || len(left) > 0 {
		return nil, err
	}
	if did, err := h.unrule(ctx); err != nil {
		return nil, err
	} else if did {
		removed = append(removed, "packet filter rules")
	}
	for _, name := range h.forwarding() {
		if err := sysctl("ipv4/conf/"+name+"/forwarding", "0"); err != nil {
			return removed, err
		}
		removed = append(removed, "forwarding on "+name)
	}
	return removed, h.recordForwarding(nil)
}

// uplinks are the names of the links of the default routes.
func uplinks() []string {
	var names []string
	for _, l := range defaultLinks() {
		if !slices.Contains(names, l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// uplinkMTU is the smallest MTU of the default routes' links.
func uplinkMTU() int {
	mtu := 1500
	for _, l := range defaultLinks() {
		mtu = min(mtu, l.Attrs().MTU)
	}
	return mtu
}

func defaultLinks() []netlink.Link {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var links []netlink.Link
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		indexes := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
		for _, i := range indexes {
			if l, err := netlink.LinkByIndex(i); err == nil && i > 0 {
				links = append(links, l)
			}
		}
	}
	return links
}
