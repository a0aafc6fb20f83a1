"""Bring files to the disk before a rename shows them, and swap two folders in one step.

What was renamed and not brought to the disk may be empty, or half there, after a crash of the system or a power cut.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

# Set it to save the time in benchmarks and tests, where nothing is to outlive the system.
NO_SYNC = "GPT2ONNX_NO_SYNC"

CURRENT_FOLDER, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
NO_SWAP = (errno.ENOSYS, errno.EINVAL)  # what old kernels and some file systems say of it


def sync(path: Path) -> None:
    """Bring a file or folder to the disk, with everything below it. Links are part of their folders."""
    for parent, _, names in os.walk(path):
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                sync_entry(Path(parent, name))
        sync_entry(Path(parent))
    if path.is_file():
        sync_entry(path)


def sync_entry(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: it was not written, such as on a disk that is full or broken.
    """
    if os.name != "posix" or os.environ.get(NO_SYNC):  # Windows flushes no folders, and no files open to be read
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing, as of some networks
            raise
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Give each of two folders the other's name in one step, if the system can; return whether it did.

    Raises:
        OSError: the system can, and the folders may not be renamed.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(CURRENT_FOLDER, os.fsencode(one), CURRENT_FOLDER, os.fsencode(other), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_SWAP:
        return False
    raise OSError(number, os.strerror(number), str(other))
