"""The inside of the sandbox: a script of its own, standard library only, that confines itself and then runs a program.

Started by `sandbox.run_program` as `python confined.py VERDICT_FD CPU_SECONDS MEMORY_BYTES OUTPUT_BYTES`. Standard input holds
a secret line and the program; the secret goes to VERDICT_FD only after the program came to its end by itself, so a program
that leaves early (`os._exit(0)`) cannot look finished. What each layer stops, and what none does, is said in `sandbox`.

Sources: landlock(7), seccomp(2), setrlimit(2), Python's table of audit events. Every layer is for good once it is on.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same on every machine
LANDLOCK_VERSION = 1  # flag: tell the version instead of making a ruleset
# landlock's rights that change the file system, by the version that brought them; reading stays free
RIGHTS = {1: 0b1_1111_1111_0010, 2: 1 << 13, 3: 1 << 14}  # write, remove, make_*; move between folders; truncate

# Numbers of socket, socketpair, clone, (fork, vfork,) execve, execveat, clone3, kill, tkill, tgkill, pidfd_send_signal, ptrace,
# prlimit64 and io_uring_setup, with the mark by which the kernel tells the machine: asm/unistd.h, linux/audit.h
SYSCALLS = {
    "x86_64": (0xC000003E, (41, 53, 56, 57, 58, 59, 322, 435, 62, 200, 234, 424, 101, 302, 425)),
    "aarch64": (0xC00000B7, (198, 199, 220, 221, 281, 435, 129, 130, 131, 424, 117, 261, 425)),
}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h
NUMBER_AT, MACHINE_AT = 0, 4  # in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # REFUSE: the call fails with EPERM

DENIED_EVENTS = (
    "ctypes.",
    "fcntl.",
    "os.",
    "pty.",
    "resource.",
    "shutil.",
    "signal.",
    "socket.",
    "subprocess.",
    "syslog.",
)
ALLOWED_EVENTS = {"os.chdir", "os.fwalk", "os.listdir", "os.putenv", "os.scandir", "os.unsetenv", "os.walk"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the secret and the program, confine this process, run the program, tell that it finished."""
    verdict, cpu_seconds, memory_bytes, output_bytes = map(int, sys.argv[1:])
    secret = sys.stdin.buffer.readline()
    program = sys.stdin.buffer.read()
    confine(cpu_seconds, memory_bytes, output_bytes)
    exec(compile(program, "program", "exec"), {"__name__": "program"})  # noqa: S102  running it is what this file is for
    os.write(verdict, secret)
    os._exit(0)  # whatever the program left for the end of the process is not run


def confine(cpu_seconds: int, memory_bytes: int, output_bytes: int) -> None:
    """Put every layer on that this system has."""
    limits = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),  # a signal that names the reason, then death
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (output_bytes, output_bytes),
        resource.RLIMIT_NPROC: (0, 0),  # no further process or thread; root is exempt, hence the filter below
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for limit, values in limits.items():
        with contextlib.suppress(ValueError, OSError):  # unknown to the system, or stricter already
            resource.setrlimit(limit, values)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # nobody outlives the evaluation
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        forbid_changing_files(libc)
        forbid_syscalls(libc)
    sys.addaudithook(deny)


def forbid_changing_files(libc: ctypes.CDLL) -> None:
    """Landlock without a single rule: no file is opened for writing, made, moved or removed anywhere. Open ones stay."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if version < 1:
        return  # not in this kernel
    rights = ctypes.c_uint64(sum(bits for since, bits in RIGHTS.items() if since <= version))
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(rights), ctypes.c_size_t(8), 0)
    libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)


def forbid_syscalls(libc: ctypes.CDLL) -> None:
    """A seccomp filter: no socket, process, thread, other program, signal, tracing, or limit of another process."""
    if os.uname().machine not in SYSCALLS:
        return
    machine, numbers = SYSCALLS[os.uname().machine]
    count = len(numbers)
    steps = [
        (LOAD, 0, 0, MACHINE_AT),
        (JUMP_IF_EQUAL, 0, count + 2, machine),  # calls in another machine's numbering are refused
        (LOAD, 0, 0, NUMBER_AT),
        *((JUMP_IF_EQUAL, count - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct.pack("HP", len(steps), ctypes.addressof(code)), 0, 0)


def deny(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: the same prohibitions within Python, for systems whose kernel cannot enforce them."""
    writes = event == "open" and arguments[2] & WRITING
    if writes or (event.startswith(DENIED_EVENTS) and event not in ALLOWED_EVENTS):
        raise PermissionError(f"{event} is not allowed here")


if __name__ == "__main__":
    main()
