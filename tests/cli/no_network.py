"""Let the kernel end this process as soon as it opens a socket: a look-up of a name is seen, too."""

from __future__ import annotations

import ctypes
import platform
import signal
import socket
import struct

# Numbers of Linux: what a filter loads, compares and returns, and the call that it looks at.
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
CALL, FIRST_ARGUMENT = 0, 16  # where they lie in what a filter is given
ALLOW, KILL = 0x7FFF0000, 0x80000000
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
NO_NEW_PRIVILEGES, SET_FILTER, FILTER_MODE = 38, 22, 2  # of prctl

KILLED = -signal.SIGSYS  # the exit code of a process that opened a socket


class Program(ctypes.Structure):
    """A filter as prctl takes it."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def forbid_sockets() -> None:
    """Allow sockets of this machine (AF_UNIX) only, in this process and those that it starts."""
    instructions = (
        (LOAD_WORD, 0, 0, CALL),
        (JUMP_IF_EQUAL, 0, 3, SOCKET_CALL[platform.machine()]),
        (LOAD_WORD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 1, 0, socket.AF_UNIX),
        (RETURN, 0, 0, KILL),
        (RETURN, 0, 0, ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (SET_FILTER, FILTER_MODE, ctypes.byref(Program(len(instructions), code))),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "this kernel takes no filter")
