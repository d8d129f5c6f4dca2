#include "textflag.h"

// berth's init; see init_amd64.s, which this follows line by line.
//
// Registers that live through the whole program (system calls keep all but R0):
//   R19  the environment     R20  argv of the command     R21  the report pipe, or -1     R22  pid of the command
// and at the stack pointer, which stays where it is from the beginning:
//    0(RSP)  a signal set     8(RSP)  a report: kind, value      16(RSP)  wait status, or a pid
//   24(RSP)  errno of an execve that was not possible; the command's process writes it, as it shares the memory
//   32(RSP)  32 bytes of zeros: a timespec, or a sigaction with the default action

#define SYS_fcntl 25
#define SYS_ioctl 29
#define SYS_close 57
#define SYS_write 64
#define SYS_exit_group 94
#define SYS_kill 129
#define SYS_rt_sigaction 134
#define SYS_rt_sigprocmask 135
#define SYS_rt_sigtimedwait 137
#define SYS_setpgid 154
#define SYS_prctl 167
#define SYS_getpid 172
#define SYS_clone 220
#define SYS_execve 221
#define SYS_wait4 260

#define ENOENT 2
#define EACCES 13
#define ENODEV 19
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
	MOVD 0(RSP), R1           // argc
	MOVD RSP, R2
	ADD  $16, R2, R20         // argv[1]
	ADD  R1<<3, R20, R19      // behind argv and its NULL
	SUB  $64, RSP
	MOVD ZR, 24(RSP)
	MOVD ZR, 32(RSP)
	MOVD ZR, 40(RSP)
	MOVD ZR, 48(RSP)
	MOVD ZR, 56(RSP)

	MOVD $4, R0               // PR_SET_DUMPABLE
	MOVD $0, R1
	MOVD $SYS_prctl, R8
	SVC
	MOVD $36, R0              // PR_SET_CHILD_SUBREAPER
	MOVD $1, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $SYS_prctl, R8
	SVC

	// All signals wait until they are asked for.
	MOVD $-1, R0
	MOVD R0, 0(RSP)
	MOVD $2, R0               // SIG_SETMASK
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigprocmask, R8
	SVC
	MOVD $64, R9
defaults:
	MOVD R9, R0
	ADD  $32, RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigaction, R8
	SVC
	SUB  $1, R9
	CBNZ R9, defaults

	// Descriptor 3 is the report pipe if it is a pipe.
	MOVD $3, R21
	MOVD R21, R0
	MOVD $1032, R1            // F_GETPIPE_SZ
	MOVD $SYS_fcntl, R8
	SVC
	CMP  $0, R0
	BGE  piped
	MOVD $-1, R21
	B    start
piped:
	MOVD R21, R0
	MOVD $2, R1               // F_SETFD
	MOVD $1, R2               // FD_CLOEXEC
	MOVD $SYS_fcntl, R8
	SVC

start:
	// The command's process shares this memory and this stack until its execve, while this one sleeps.
	MOVD $0x4111, R0          // CLONE_VM | CLONE_VFORK | SIGCHLD
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $SYS_clone, R8
	SVC
	CBZ  R0, child
	CMP  $0, R0
	BLT  notstarted
	MOVD R0, R22
	MOVD 24(RSP), R23
	CBNZ R23, failed

	// The streams are the command's alone: a reader sees their end when the command closes them.
	MOVD $0, R0
	MOVD $SYS_close, R8
	SVC
	MOVD $1, R0
	MOVD $SYS_close, R8
	SVC
	MOVD $2, R0
	MOVD $SYS_close, R8
	SVC
	MOVD $2, R0               // Executed
	MOVW R0, 8(RSP)
	MOVW R22, 12(RSP)
	B    report

wait:
	MOVD RSP, R0              // every signal
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigtimedwait, R8
	SVC
	CMP  $SIGCHLD, R0
	BEQ  reap
	CMP  $0, R0
	BLE  wait
	MOVD R0, R1
	MOVD R22, R0
	MOVD $SYS_kill, R8
	SVC
	B    wait

reap:
	MOVD $-1, R0
	ADD  $16, RSP, R1
	MOVD $0x40000001, R2      // __WALL | WNOHANG
	MOVD $0, R3
	MOVD $SYS_wait4, R8
	SVC
	CMP  R22, R0
	BEQ  ended
	CMP  $0, R0
	BGT  reap
	B    wait

ended:
	MOVD $3, R0               // Ended
	MOVW R0, 8(RSP)
	MOVWU 16(RSP), R0
	MOVW R0, 12(RSP)
	B    report
leave:
	MOVWU 16(RSP), R0
	AND  $0x7f, R0, R1
	CBNZ R1, signaled
	LSR  $8, R0
	AND  $0xff, R0
	B    exit
signaled:
	ADD  $128, R1, R0
exit:
	MOVD $SYS_exit_group, R8
	SVC
	BRK

notstarted:
	NEG  R0, R23
failed:
	MOVD $1, R0               // ExecFailed
	MOVW R0, 8(RSP)
	MOVW R23, 12(RSP)
	B    report
giveup:
	MOVD $126, R0
	CMP  $ENOENT, R23
	BNE  exit
	MOVD $127, R0
	B    exit

// report writes the record, and goes on by its kind.
report:
	CMP  $0, R21
	BLT  reported
	MOVD R21, R0
	ADD  $8, RSP, R1
	MOVD $8, R2
	MOVD $SYS_write, R8
	SVC
	CMP  $0, R0
	BGE  reported
	// Nobody reads: that raised SIGPIPE, which is not the command's.
	MOVD $0x1000, R0          // 1 << (SIGPIPE-1)
	MOVD R0, 0(RSP)
	MOVD RSP, R0
	MOVD $0, R1
	ADD  $32, RSP, R2         // no time
	MOVD $8, R3
	MOVD $SYS_rt_sigtimedwait, R8
	SVC
	MOVD $-1, R0
	MOVD R0, 0(RSP)
reported:
	MOVWU 8(RSP), R0
	CMP  $2, R0
	BEQ  wait
	BGT  leave
	B    giveup

child:
	// A process group of its own, in the foreground if there is a terminal and it is ours.
	MOVD $0, R0
	MOVD $0, R1
	MOVD $SYS_setpgid, R8
	SVC
	MOVD $SYS_getpid, R8
	SVC
	MOVW R0, 16(RSP)
	MOVD $0, R0
	MOVD $0x5410, R1          // TIOCSPGRP
	ADD  $16, RSP, R2
	MOVD $SYS_ioctl, R8
	SVC
	MOVD $2, R0               // SIG_SETMASK
	ADD  $32, RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigprocmask, R8
	SVC

	MOVD $EINVAL, R23
	MOVD (R20), R24           // the command; NULL if there is none
	CBZ  R24, impossible
	MOVD $ENOENT, R23
	MOVD R24, R9
length:
	MOVBU (R9), R10
	CBZ  R10, measured
	CMP  $0x2f, R10           // '/'
	BEQ  path
	ADD  $1, R9
	B    length
path:
	MOVD R24, R0
	MOVD R20, R1
	MOVD R19, R2
	MOVD $SYS_execve, R8
	SVC
	NEG  R0, R23
	B    impossible

measured:
	SUB  R24, R9, R25         // length of the command
	CBZ  R25, impossible
	MOVD R19, R9
environment:
	MOVD (R9), R26
	CBZ  R26, nopath
	ADD  $8, R9
	MOVBU 0(R26), R10
	CMP  $0x50, R10           // 'P'
	BNE  environment
	MOVBU 1(R26), R10
	CMP  $0x41, R10           // 'A'
	BNE  environment
	MOVBU 2(R26), R10
	CMP  $0x54, R10           // 'T'
	BNE  environment
	MOVBU 3(R26), R10
	CMP  $0x48, R10           // 'H'
	BNE  environment
	MOVBU 4(R26), R10
	CMP  $0x3d, R10           // '='
	BNE  environment
	ADD  $5, R26
	MOVBU (R26), R10
	CBNZ R10, search
nopath:
	ADR  defaultpath, R26

search:
	// An element of PATH begins at R26. R23 is the errno to end with.
	MOVD R26, R9
element:
	MOVBU (R9), R10
	CBZ  R10, delimited
	CMP  $0x3a, R10           // ':'
	BEQ  delimited
	ADD  $1, R9
	B    element
delimited:
	SUB  R26, R9, R11         // its length; its end is R9
	ADD  R25, R11, R12
	ADD  $2, R12              // with a slash and a zero
	CMP  $PATH_MAX, R12
	BGT  next
	MOVD RSP, R13
	SUB  $32, R13
	SUB  R12, R13             // the candidate is put below the stack
	MOVD R13, R14
	CBZ  R11, relative        // an empty element is the working directory
copy:
	MOVBU.P 1(R26), R10
	MOVBU.P R10, 1(R14)
	CMP  R9, R26
	BNE  copy
	MOVD $0x2f, R10
	MOVBU.P R10, 1(R14)
relative:
	MOVD R24, R15
append:
	MOVBU.P 1(R15), R10
	MOVBU.P R10, 1(R14)
	CBNZ R10, append
	MOVD R13, R0
	MOVD R20, R1
	MOVD R19, R2
	MOVD $SYS_execve, R8
	SVC
	NEG  R0, R0
	CMP  $ENOENT, R0
	BEQ  next
	CMP  $ENOTDIR, R0
	BEQ  next
	CMP  $ENODEV, R0
	BEQ  next
	CMP  $ENAMETOOLONG, R0
	BEQ  next
	CMP  $ELOOP, R0
	BEQ  next
	CMP  $ETIMEDOUT, R0
	BEQ  next
	CMP  $ESTALE, R0
	BEQ  next
	MOVD R0, R23
	CMP  $EACCES, R0          // another directory may have one that can be run
	BNE  impossible
next:
	MOVD R9, R26
	MOVBU (R26), R10
	CBZ  R10, impossible
	ADD  $1, R26
	B    search

impossible:
	MOVD R23, 24(RSP)
	MOVD $126, R0
	CMP  $ENOENT, R23
	BNE  childexit
	MOVD $127, R0
childexit:
	MOVD $SYS_exit_group, R8
	SVC
	BRK
defaultpath:
	// /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	WORD $0x7273752f
	WORD $0x636f6c2f
	WORD $0x732f6c61
	WORD $0x3a6e6962
	WORD $0x7273752f
	WORD $0x636f6c2f
	WORD $0x622f6c61
	WORD $0x2f3a6e69
	WORD $0x2f727375
	WORD $0x6e696273
	WORD $0x73752f3a
	WORD $0x69622f72
	WORD $0x732f3a6e
	WORD $0x3a6e6962
	WORD $0x6e69622f
	WORD $0x00000000
	// The end of the code, for ELF to find.
	WORD $0x74726562
	WORD $0x6e692d68
	WORD $0x652d7469
	WORD $0x2121646e
