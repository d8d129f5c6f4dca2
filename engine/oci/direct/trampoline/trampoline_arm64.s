#include "textflag.h"

// See trampoline_amd64.s, which this follows line by line.
//
// R19 the next candidate   R20 the environment   R21 argv of the command   R22 the errno that is kept

#define SYS_fcntl 25
#define SYS_write 64
#define SYS_exit_group 94
#define SYS_execve 221

#define ENOENT 2
#define EACCES 13
#define ENOTDIR 20

DATA ·codeAddress(SB)/8, $·code(SB)
GLOBL ·codeAddress(SB), RODATA, $8

// func code()
TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MOVD 0(RSP), R1           // argc
	MOVD RSP, R2
	ADD  $8, R2, R19
	ADD  $16, R2, R20
	ADD  R1<<3, R20, R20      // behind argv and its NULL
	MOVD $0, R22

	MOVD $3, R0
	MOVD $2, R1               // F_SETFD
	MOVD $1, R2               // FD_CLOEXEC
	MOVD $SYS_fcntl, R8
	SVC
	CMP  $0, R0
	BLT  leave

	MOVD R19, R21
separator:
	MOVD (R21), R1
	ADD  $8, R21
	MOVBU (R1), R2
	CBNZ R2, separator

next:
	MOVD (R19), R0
	ADD  $8, R19
	MOVBU (R0), R2
	CBZ  R2, failed
	MOVD R21, R1
	MOVD R20, R2
	MOVD $SYS_execve, R8
	SVC
	NEG  R0, R0
	CMP  $ENOENT, R0
	BEQ  missing
	CMP  $ENOTDIR, R0
	BEQ  missing
	// It says more than that there is nothing; the first such errno but EACCES stays.
	CBZ  R22, keep
	CMP  $ENOENT, R22
	BEQ  keep
	CMP  $EACCES, R22
	BNE  next
keep:
	MOVD R0, R22
	B    next
missing:
	CBNZ R22, next
	MOVD $ENOENT, R22
	B    next

failed:
	SUB  $16, RSP
	MOVW R22, 0(RSP)
	MOVD $3, R0
	MOVD RSP, R1
	MOVD $4, R2
	MOVD $SYS_write, R8
	SVC
leave:
	MOVD $127, R0
	MOVD $SYS_exit_group, R8
	SVC
	BRK
	// The end of the code, for Memfd to find.
	WORD $0x74726562
	WORD $0x78652d68
	WORD $0x652d6365
	WORD $0x2121646e
