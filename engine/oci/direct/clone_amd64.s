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

// func rawCall(nr uintptr, args *[6]uintptr) (result uintptr)
TEXT ·rawCall(SB), NOSPLIT, $0-24
	MOVQ	args+8(FP), BX
	MOVQ	0(BX), DI
	MOVQ	8(BX), SI
	MOVQ	16(BX), DX
	MOVQ	24(BX), R10
	MOVQ	32(BX), R8
	MOVQ	40(BX), R9
	MOVQ	nr+0(FP), AX
	SYSCALL
	MOVQ	AX, result+16(FP)
	RET
