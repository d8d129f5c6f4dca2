#include "textflag.h"

// The stub. It is never executed where it lies in berth: stub copies it into an image of its own, at a fixed
// address, with its data behind it.

#define DATA_FDS 0x400400  // where to write, where to read: two int32
#define DATA_PATH 0x400408 // what to execute

#define SYS_read 0
#define SYS_write 1
#define SYS_close 3
#define SYS_execve 59
#define SYS_exit_group 231
#define SYS_unshare 272

DATA ·codeAddress(SB)/8, $·code(SB)
GLOBL ·codeAddress(SB), RODATA, $8

// func code()
TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ SP, R12              // argc, argv, environment
	SUBQ $16, SP
	MOVQ $DATA_FDS, BX
	MOVL $0x10000000, DI      // CLONE_NEWUSER
	MOVL $SYS_unshare, AX
	SYSCALL
	NEGL AX
	MOVB AX, 0(SP)
	MOVL 0(BX), DI
	MOVQ SP, SI
	MOVL $1, DX
	MOVL $SYS_write, AX
	SYSCALL
	MOVB $125, 0(SP)          // should the helper be gone
	MOVL 4(BX), DI
	MOVQ SP, SI
	MOVL $1, DX
	MOVL $SYS_read, AX
	SYSCALL
	MOVBLZX 0(SP), DI
	CMPL AX, $1
	JNE  exit
	TESTL DI, DI
	JNE  exit
	MOVL 0(BX), DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL 4(BX), DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVQ $DATA_PATH, DI
	LEAQ 8(R12), SI
	MOVQ 0(R12), AX
	LEAQ 16(R12)(AX*8), DX
	MOVL $SYS_execve, AX
	SYSCALL
	MOVL $126, DI
exit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	BYTE $'b'; BYTE $'e'; BYTE $'r'; BYTE $'t'; BYTE $'h'; BYTE $'-'; BYTE $'s'; BYTE $'t'
	BYTE $'u'; BYTE $'b'; BYTE $'-'; BYTE $'e'; BYTE $'n'; BYTE $'d'; BYTE $'!'; BYTE $'!'
	RET
