package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const table = "berth"

// rules makes sure that packets of the subnet's sandboxes leave under the host's address, that sandboxes do
// not reach each other, and that nobody outside begins a connection to one. The lock is held.
//
// This is nftables' work. Where the kernel has only iptables, or where rules of iptables would drop what is
// forwarded (Docker, ufw), iptables is told the same.
func (h *Host) rules(ctx context.Context, subnet netip.Prefix) error {
	err := error(unix.EOPNOTSUPP)
	if !h.opts.withoutNFT {
		err = nftRules(subnet)
	}
	if missing(err) {
		if err2 := h.opts.iptables.rules(ctx, subnet, true); err2 != nil {
			return fmt.Errorf("%w; nftables: %w", err2, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("packet filter rules: %w", err)
	}
	if iptablesForwards(ctx) {
		return h.opts.iptables.rules(ctx, subnet, false)
	}
	return nil
}

// unrule removes all rules, and reports whether there were some. The lock is held.
func (h *Host) unrule(ctx context.Context) (did bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	t, err := c.ListTableOfFamily(table, nftables.TableFamilyIPv4)
	if err == nil && t != nil {
		c.DelTable(t)
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("remove packet filter rules: %w", err)
		}
		did = true
	}
	if !iptablesForwards(ctx) {
		return did, nil
	}
	did2, err := h.opts.iptables.remove(ctx)
	return did || did2, err
}

// missing reports whether the kernel has no nftables, or not all that is asked of it.
func missing(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.ENOENT, unix.EAFNOSUPPORT, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func nftRules(subnet netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	nat := &nftables.Chain{Name: "postrouting"}
	t, err := c.ListTableOfFamily(table, nftables.TableFamilyIPv4)
	if err != nil || t == nil {
		t = c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4})
		nat = addChains(c, t)
	} else {
		nat.Table = t
		have, err := c.GetRules(t, nat)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(have, func(r *nftables.Rule) bool { return string(r.UserData) == subnet.String() }) {
			return nil
		}
	}
	masquerade := slices.Concat(fromSubnet(subnet), linkIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}})
	c.AddRule(&nftables.Rule{Table: t, Chain: nat, Exprs: masquerade, UserData: []byte(subnet.String())})
	return c.Flush()
}

// addChains makes what does not depend on the subnet.
func addChains(c *nftables.Conn, t *nftables.Table) (nat *nftables.Chain) {
	accept := nftables.ChainPolicyAccept
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookForward, Priority: new(*nftables.ChainPriorityFilter - 10),
	})
	from, to := linkIs(expr.MetaKeyIIFNAME, expr.CmpOpEq), linkIs(expr.MetaKeyOIFNAME, expr.CmpOpEq)
	drop, pass := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	for _, exprs := range [][]expr.Any{
		slices.Concat(from, to, drop),
		slices.Concat(from, pass),
		slices.Concat(to, answers(), pass),
		slices.Concat(to, drop),
	} {
		c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: exprs})
	}
	return c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Policy: &accept,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
}

// linkIs compares the beginning of a link's name with that of the sandboxes' links.
func linkIs(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte(linkPrefix)},
	}
}

func fromSubnet(subnet netip.Prefix) []expr.Any {
	addr := subnet.Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask(subnet.Bits()), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr[:]},
	}
}

// answers matches what belongs to a connection that a sandbox began.
func answers() []expr.Any {
	bits := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func mask(bits int) []byte {
	m := ^uint32(0) << (32 - bits)
	return []byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}
