"""Processes that end in the middle of something, as by a power cut, and disks that are full."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def in_a_process(body: Callable[[], None]) -> int:
    """Run the body in a forked process; return its exit status, or the negative number of the signal that ended it."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended)


def end_without_a_word(*_: object) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, bytes: a write that does fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
