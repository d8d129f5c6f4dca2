// Package initbin is berth's init: pid 1 of a container, which runs the container's command as its child. It
// is some 700 bytes of machine code, from Go assembly, made into a static ELF image at run time: an idle
// container costs two or three pages of memory for it.
//
// The image is executed as
//
//	execve(image, {"berth-init", COMMAND, ARG...}, ENVIRONMENT)
//
// with the image in a memfd (execveat with AT_EMPTY_PATH) or bound into the container as a file. It
//
//   - makes itself unreadable to the container (not dumpable), and a subreaper where it is not pid 1;
//   - blocks all signals, and sets all to their default action;
//   - runs COMMAND with those arguments and that environment, no blocked signals, in a process group of its
//     own, which it puts in the foreground if standard input is its session's terminal. A COMMAND without a
//     slash is looked up as execvp(3) does: in the PATH of the environment given, or if that has none or an
//     empty one in /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; a file there that may not be
//     executed is passed over, and remembered as EACCES. A file that is neither ELF nor a script is not given
//     to a shell;
//   - closes its own standard streams, so that a reader sees their end when the command closes them;
//   - sends on to the command every signal that it gets, but SIGCHLD, and those that nobody can catch;
//   - reaps every process that ends in the container, and ends when the command has: with its exit code, or
//     128+n where signal n ended it. As pid 1 it takes all that still runs with it.
//
// If the command cannot be executed, it ends with 127 (ENOENT) or 126.
//
// If descriptor 3 is a pipe, it is the report pipe: init writes Records to it, and the command does not
// inherit it. Nothing depends on whether anybody reads it.
//
// init needs these system calls besides what the command needs; a seccomp profile that forbids one stops it:
// clone, execve, wait4, kill, rt_sigtimedwait, rt_sigprocmask, exit_group. It goes on without prctl, setpgid,
// ioctl, fcntl, close, write, getpid and rt_sigaction.
package initbin
