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

// func rawCall(nr uintptr, args *[6]uintptr) (result uintptr)
TEXT ·rawCall(SB), NOSPLIT, $0-24
	MOVD	args+8(FP), R9
	MOVD	0(R9), R0
	MOVD	8(R9), R1
	MOVD	16(R9), R2
	MOVD	24(R9), R3
	MOVD	32(R9), R4
	MOVD	40(R9), R5
	MOVD	nr+0(FP), R8
	SVC
	MOVD	R0, result+16(FP)
	RET
