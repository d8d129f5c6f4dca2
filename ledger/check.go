package ledger

// Check reports whether req makes sense, and whether this machine could ever lend it: the errors of Acquire
// that waiting does not change, without touching the ledger.
func (l *Ledger) Check(req Request) error {
	if err := req.check(); err != nil {
		return err
	}
	return l.cfg.Capacity.couldFit(&req)
}
