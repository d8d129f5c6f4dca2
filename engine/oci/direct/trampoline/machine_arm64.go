package trampoline

const (
	elfMachine   uint16 = 183   // EM_AARCH64
	segmentAlign uint64 = 65536 // the largest page size of the architecture
)
