#include "textflag.h"

// It is never executed where it lies in berth: Memfd copies it into an image of its own, so that it must not
// refer to anything outside itself. The package comment says what it does.
//
// R12 the next candidate   R13 the environment   R14 argv of the command   R15 the errno that is kept

#define SYS_write 1
#define SYS_execve 59
#define SYS_fcntl 72
#define SYS_exit_group 231

#define ENOENT 2
#define EACCES 13
#define ENOTDIR 20

DATA ·codeAddress(SB)/8, $·code(SB)
GLOBL ·codeAddress(SB), RODATA, $8

// func code()
TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ 0(SP), BX            // argc
	LEAQ 8(SP), R12
	LEAQ 16(SP)(BX*8), R13    // behind argv and its NULL
	XORL R15, R15

	MOVL $3, DI
	MOVL $2, SI               // F_SETFD
	MOVL $1, DX               // FD_CLOEXEC
	MOVL $SYS_fcntl, AX
	SYSCALL
	TESTQ AX, AX
	JLT  leave

	MOVQ R12, R14
separator:
	MOVQ (R14), AX
	ADDQ $8, R14
	CMPB (AX), $0
	JNE  separator

next:
	MOVQ (R12), DI
	ADDQ $8, R12
	CMPB (DI), $0
	JEQ  failed
	MOVQ R14, SI
	MOVQ R13, DX
	MOVL $SYS_execve, AX
	SYSCALL
	NEGQ AX
	CMPL AX, $ENOENT
	JEQ  missing
	CMPL AX, $ENOTDIR
	JEQ  missing
	// It says more than that there is nothing; the first such errno but EACCES stays.
	TESTL R15, R15
	JZ   keep
	CMPL R15, $ENOENT
	JEQ  keep
	CMPL R15, $EACCES
	JNE  next
keep:
	MOVL AX, R15
	JMP  next
missing:
	TESTL R15, R15
	JNZ  next
	MOVL $ENOENT, R15
	JMP  next

failed:
	MOVL R15, 0(SP)
	MOVL $3, DI
	MOVQ SP, SI
	MOVL $4, DX
	MOVL $SYS_write, AX
	SYSCALL
leave:
	MOVL $127, DI
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3
	// The end of the code, for Memfd to find.
	QUAD $0x78652d6874726562 // "berth-ex"
	QUAD $0x2121646e652d6365 // "ec-end!!"
