#include "textflag.h"

// func cloneChild(args *cloneArgs, size uintptr, p *program) (result uintptr)
//
// The child begins on the stack that args names and never returns to the caller's frames, so that it cannot
// overwrite what the waiting parent has on its stack.
TEXT ·cloneChild(SB), NOSPLIT, $16-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	p+16(FP), R19
	MOVD	$435, R8 // clone3
	SVC
	CBZ	R0, child
	MOVD	R0, result+24(FP)
	RET
child:
	MOVD	R19, 8(RSP)
	CALL	·childMain(SB)
	BRK
