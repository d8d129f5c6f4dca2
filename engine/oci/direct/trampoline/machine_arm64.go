package trampoline

const (
	elfMachine   uint16 = 183   // EM_AARCH64
	segmentAlign        = 65536 // the largest page size of the architecture
)
