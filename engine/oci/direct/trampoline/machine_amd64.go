package trampoline

const (
	elfMachine   uint16 = 62 // EM_X86_64
	segmentAlign uint64 = 4096
)
