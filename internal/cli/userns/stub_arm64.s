#include "textflag.h"

// The stub. It is never executed where it lies in berth: stub copies it into an image of its own, at a fixed
// address, with its data behind it.

#define DATA_FDS 0x400400  // where to write, where to read: two int32
#define DATA_PATH 0x400408 // what to execute

#define SYS_close 57
#define SYS_read 63
#define SYS_write 64
#define SYS_exit_group 94
#define SYS_unshare 97
#define SYS_execve 221

DATA ·codeAddress(SB)/8, $·code(SB)
GLOBL ·codeAddress(SB), RODATA, $8

// func code()
TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R19             // argc, argv, environment
	SUB  $16, RSP
	MOVD $DATA_FDS, R20
	MOVD $0x10000000, R0      // CLONE_NEWUSER
	MOVD $SYS_unshare, R8
	SVC
	NEGW R0, R0
	MOVB R0, 0(RSP)
	MOVW 0(R20), R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $SYS_write, R8
	SVC
	MOVD $125, R3             // should the helper be gone
	MOVB R3, 0(RSP)
	MOVW 4(R20), R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $SYS_read, R8
	SVC
	MOVBU 0(RSP), R4
	CMP  $1, R0
	BNE  exit
	CBNZ R4, exit
	MOVW 0(R20), R0
	MOVD $SYS_close, R8
	SVC
	MOVW 4(R20), R0
	MOVD $SYS_close, R8
	SVC
	MOVD $DATA_PATH, R0
	ADD  $8, R19, R1
	MOVD 0(R19), R3
	ADD  R3<<3, R19, R2
	ADD  $16, R2, R2
	MOVD $SYS_execve, R8
	SVC
	MOVD $126, R4
exit:
	MOVD R4, R0
	MOVD $SYS_exit_group, R8
	SVC
	WORD $0x74726562 // "bert"
	WORD $0x74732d68 // "h-st"
	WORD $0x652d6275 // "ub-e"
	WORD $0x2121646e // "nd!!"
	RET
