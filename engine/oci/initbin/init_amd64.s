#include "textflag.h"

// berth's init. It is never executed where it lies in berth: ELF copies it into an image of its own, so that
// it must not refer to anything outside itself. doc.go says what it does.
//
// Registers that live through the whole program (system calls keep all but AX, CX and R11):
//   R12  the environment     R13  argv of the command     R14  the report pipe, or -1     R15  pid of the command
// and at the stack pointer, which stays where it is from the beginning:
//    0(SP)  a signal set or a pid       8(SP)  a report: kind, value      16(SP)  wait status
//   24(SP)  errno of an execve that was not possible; the command's process writes it, as it shares the memory
//   32(SP)  32 bytes of zeros: a timespec, or a sigaction with the default action

#define SYS_write 1
#define SYS_close 3
#define SYS_rt_sigaction 13
#define SYS_rt_sigprocmask 14
#define SYS_ioctl 16
#define SYS_getpid 39
#define SYS_clone 56
#define SYS_execve 59
#define SYS_wait4 61
#define SYS_kill 62
#define SYS_fcntl 72
#define SYS_setpgid 109
#define SYS_rt_sigtimedwait 128
#define SYS_prctl 157
#define SYS_exit_group 231

#define ENOENT 2
#define ENODEV 19
#define EACCES 13
#define ENOTDIR 20
#define EINVAL 22
#define ENAMETOOLONG 36
#define ELOOP 40
#define ETIMEDOUT 110
#define ESTALE 116

#define SIGCHLD 17
#define PATH_MAX 4096

DATA ·codeAddress(SB)/8, $·code(SB)
GLOBL ·codeAddress(SB), RODATA, $8

// func code()
TEXT ·code(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ 0(SP), BX            // argc
	LEAQ 16(SP), R13          // argv[1]
	LEAQ 16(SP)(BX*8), R12    // behind argv and its NULL
	SUBQ $64, SP
	XORL AX, AX
	MOVQ AX, 24(SP)
	MOVQ AX, 32(SP)
	MOVQ AX, 40(SP)
	MOVQ AX, 48(SP)
	MOVQ AX, 56(SP)

	// Nobody in the container reads this process: neither its memory nor its descriptors.
	MOVL $4, DI               // PR_SET_DUMPABLE
	XORL SI, SI
	MOVL $SYS_prctl, AX
	SYSCALL
	// Orphans come here even where this is not pid 1.
	MOVL $36, DI              // PR_SET_CHILD_SUBREAPER
	MOVL $1, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	MOVL $SYS_prctl, AX
	SYSCALL

	// All signals wait until they are asked for.
	MOVQ $-1, AX
	MOVQ AX, 0(SP)
	MOVL $2, DI               // SIG_SETMASK
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigprocmask, AX
	SYSCALL
	// An ignored signal stays ignored in the command, and an ignored SIGCHLD would lose its status.
	MOVL $64, BX
defaults:
	MOVL BX, DI
	LEAQ 32(SP), SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigaction, AX
	SYSCALL
	DECL BX
	JNZ  defaults

	// Descriptor 3 is the report pipe if it is a pipe.
	MOVL $3, R14
	MOVL R14, DI
	MOVL $1032, SI            // F_GETPIPE_SZ
	MOVL $SYS_fcntl, AX
	SYSCALL
	TESTQ AX, AX
	JGE  piped
	MOVQ $-1, R14
	JMP  start
piped:
	MOVL R14, DI
	MOVL $2, SI               // F_SETFD
	MOVL $1, DX               // FD_CLOEXEC
	MOVL $SYS_fcntl, AX
	SYSCALL

start:
	// The command's process shares this memory and this stack until its execve, while this one sleeps.
	MOVL $0x4111, DI          // CLONE_VM | CLONE_VFORK | SIGCHLD
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	MOVL $SYS_clone, AX
	SYSCALL
	TESTQ AX, AX
	JZ   child
	JLT  notstarted
	MOVQ AX, R15
	MOVQ 24(SP), BX
	TESTQ BX, BX
	JNZ  failed

	// The streams are the command's alone: a reader sees their end when the command closes them.
	XORL DI, DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL $1, DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL $2, DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL $2, 8(SP)            // Executed
	MOVL R15, 12(SP)
	JMP  report

wait:
	LEAQ 0(SP), DI            // every signal
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigtimedwait, AX
	SYSCALL
	CMPQ AX, $SIGCHLD
	JEQ  reap
	TESTQ AX, AX
	JLE  wait
	MOVL R15, DI
	MOVL AX, SI
	MOVL $SYS_kill, AX
	SYSCALL
	JMP  wait

reap:
	MOVQ $-1, DI
	LEAQ 16(SP), SI
	MOVL $0x40000001, DX      // __WALL | WNOHANG
	XORL R10, R10
	MOVL $SYS_wait4, AX
	SYSCALL
	CMPQ AX, R15
	JEQ  ended
	TESTQ AX, AX
	JGT  reap
	JMP  wait

ended:
	MOVL $3, 8(SP)            // Ended
	MOVL 16(SP), AX
	MOVL AX, 12(SP)
	JMP  report
leave:
	MOVL 16(SP), DI
	MOVL DI, AX
	ANDL $0x7f, AX
	JNZ  signaled
	SHRL $8, DI
	ANDL $0xff, DI
	JMP  exit
signaled:
	LEAL 128(AX), DI
exit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3

notstarted:
	NEGQ AX
	MOVQ AX, BX
failed:
	MOVL $1, 8(SP)            // ExecFailed
	MOVL BX, 12(SP)
	JMP  report
giveup:
	MOVL $126, DI
	CMPL BX, $ENOENT
	JNE  exit
	MOVL $127, DI
	JMP  exit

// report writes the record, and goes on by its kind.
report:
	TESTQ R14, R14
	JLT  reported
	MOVL R14, DI
	LEAQ 8(SP), SI
	MOVL $8, DX
	MOVL $SYS_write, AX
	SYSCALL
	TESTQ AX, AX
	JGE  reported
	// Nobody reads: that raised SIGPIPE, which is not the command's.
	MOVL $0x1000, AX          // 1 << (SIGPIPE-1)
	MOVQ AX, 0(SP)
	LEAQ 0(SP), DI
	XORL SI, SI
	LEAQ 32(SP), DX           // no time
	MOVL $8, R10
	MOVL $SYS_rt_sigtimedwait, AX
	SYSCALL
	MOVQ $-1, AX
	MOVQ AX, 0(SP)
reported:
	MOVL 8(SP), AX
	CMPL AX, $2
	JEQ  wait
	JGT  leave
	JMP  giveup

child:
	// A process group of its own, in the foreground if there is a terminal and it is ours.
	XORL DI, DI
	XORL SI, SI
	MOVL $SYS_setpgid, AX
	SYSCALL
	MOVL $SYS_getpid, AX
	SYSCALL
	MOVL AX, 16(SP)
	XORL DI, DI
	MOVL $0x5410, SI          // TIOCSPGRP
	LEAQ 16(SP), DX
	MOVL $SYS_ioctl, AX
	SYSCALL
	MOVL $2, DI               // SIG_SETMASK
	LEAQ 32(SP), SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigprocmask, AX
	SYSCALL

	MOVL $EINVAL, BX
	MOVQ (R13), R9            // the command; NULL if there is none
	TESTQ R9, R9
	JZ   impossible
	MOVL $ENOENT, BX
	MOVQ R9, DI
length:
	MOVBLZX (DI), AX
	TESTL AX, AX
	JZ   measured
	CMPL AX, $0x2f            // '/'
	JEQ  path
	INCQ DI
	JMP  length
path:
	MOVQ R9, DI
	MOVQ R13, SI
	MOVQ R12, DX
	MOVL $SYS_execve, AX
	SYSCALL
	NEGQ AX
	MOVQ AX, BX
	JMP  impossible

measured:
	SUBQ R9, DI
	JZ   impossible
	MOVQ DI, BP               // length of the command
	MOVQ R12, DI
environment:
	MOVQ (DI), R8
	TESTQ R8, R8
	JZ   nopath
	ADDQ $8, DI
	CMPL (R8), $0x48544150    // "PATH"
	JNE  environment
	CMPB 4(R8), $0x3d         // '='
	JNE  environment
	ADDQ $5, R8
	CMPB (R8), $0
	JEQ  nopath
	JMP  search
	// /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	QUAD $0x636f6c2f7273752f
	QUAD $0x3a6e6962732f6c61
	QUAD $0x636f6c2f7273752f
	QUAD $0x2f3a6e69622f6c61
	QUAD $0x6e6962732f727375
	QUAD $0x69622f7273752f3a
	QUAD $0x3a6e6962732f3a6e
	QUAD $0x000000006e69622f
nopath:
	BYTE $0x4c; BYTE $0x8d; BYTE $0x05; LONG $-71 // LEAQ -71(IP), R8: the string just before, which is 64 long, and this
search:
	// An element of PATH begins at R8. BX is the errno to end with.
	MOVQ R8, DI
element:
	MOVBLZX (DI), AX
	TESTL AX, AX
	JZ   delimited
	CMPL AX, $0x3a            // ':'
	JEQ  delimited
	INCQ DI
	JMP  element
delimited:
	MOVQ DI, R10              // its end
	SUBQ R8, DI               // its length
	LEAQ 2(DI)(BP*1), AX      // with a slash and a zero
	CMPQ AX, $PATH_MAX
	JGT  next
	MOVQ SP, DX
	SUBQ $32, DX
	SUBQ AX, DX
	MOVQ DX, AX               // the candidate is put below the stack
	MOVQ R8, SI
	MOVQ DI, CX
	MOVQ DX, DI
	CLD
	REP; MOVSB
	CMPQ DI, DX
	JEQ  relative             // an empty element is the working directory
	MOVB $0x2f, (DI)
	INCQ DI
relative:
	MOVQ R9, SI
	LEAQ 1(BP), CX
	REP; MOVSB
	MOVQ AX, DI
	MOVQ R13, SI
	MOVQ R12, DX
	MOVL $SYS_execve, AX
	SYSCALL
	NEGQ AX
	CMPL AX, $ENOENT
	JEQ  next
	CMPL AX, $ENOTDIR
	JEQ  next
	CMPL AX, $ENODEV
	JEQ  next
	CMPL AX, $ENAMETOOLONG
	JEQ  next
	CMPL AX, $ELOOP
	JEQ  next
	CMPL AX, $ETIMEDOUT
	JEQ  next
	CMPL AX, $ESTALE
	JEQ  next
	MOVL AX, BX
	CMPL AX, $EACCES          // another directory may have one that can be run
	JNE  impossible
next:
	MOVQ R10, R8
	CMPB (R8), $0
	JEQ  impossible
	INCQ R8
	JMP  search

impossible:
	MOVQ BX, 24(SP)
	MOVL $126, DI
	CMPL BX, $ENOENT
	JNE  childexit
	MOVL $127, DI
childexit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3
	// The end of the code, for ELF to find.
	QUAD $0x6e692d6874726562 // "berth-in"
	QUAD $0x2121646e652d7469 // "it-end!!"
