#include "textflag.h"

// func cloneChild(args *cloneArgs, size uintptr, p *program) (result uintptr)
//
// The child begins on the stack that args names and never returns to the caller's frames, so that it cannot
// overwrite what the waiting parent has on its stack.
TEXT ·cloneChild(SB), NOSPLIT, $16-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	p+16(FP), R12
	MOVQ	$435, AX // clone3
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, result+24(FP)
	RET
child:
	MOVQ	R12, 0(SP)
	CALL	·childMain(SB)
	INT	$3
