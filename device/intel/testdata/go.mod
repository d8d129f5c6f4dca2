// Paths of these hosts hold colons, which the files of a Go module may not; as a module of their own they stay
// out of berth's.
module hosts
