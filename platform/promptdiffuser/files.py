"""Files and folders that readers see whole or not at all, and locks between processes, on a local or shared disk.

A writer fills a neighbour of the target, syncs it to the disk and renames it. Temporary names carry the writer, so that
one that was killed is told from one that is at work:

    .NAME.writing-HOST-PID-RANDOM    what is being written
    .NAME.before-HOST-PID-RANDOM     the folder that it is about to replace
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from promptdiffuser.errors import UserError


def _host() -> str:
    """Return a name of the place where this process's id means something: a container has ids of its own."""
    try:
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


_HOST = _host()
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<role>writing|before)-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}")
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_CANNOT_LINK = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
_CANNOT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP)
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")

log = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing_below(folder: Path | str) -> Iterator[None]:
    """Turn the error of a full or write-protected disk into a `UserError` that names the folder.

    The errors of Python, pyarrow and safetensors are recognised. A file elsewhere that cannot be read is no error of
    this folder and passes.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _rust_error(error)
        if number not in _REMEDIES:
            raise
        named = Path(os.fsdecode(getattr(error, "filename", None) or folder))
        is_elsewhere = not named.is_relative_to(folder)
        if is_elsewhere and number == errno.EACCES:
            raise
        raise UserError(
            f"{named.parent if is_elsewhere else folder} cannot be written ({os.strerror(number)}); "
            f"{_REMEDIES[number]}, or write elsewhere; the same command then continues"
        ) from error


def _rust_error(error: Exception) -> int | None:
    """Return the number that Rust's libraries write into the message of an error of the system."""
    found = _RUST_ERROR.search(str(error))
    return int(found[1]) if found else None


@contextmanager
def writing(path: Path, tidying: bool = True) -> Iterator[Path]:
    """Give the body a path to write a file to, which takes the place of `path` once the body has ended.

    If the body or the disk fails, `path` stays as it was and nothing else is left.

    Args:
        path: The file.
        tidying: Delete what killed writers left in the folder, and wait until the new name is on the disk. Where
            thousands of small files are written, both cost ten times what the file costs.

    Raises:
        UserError: The disk is full or write-protected.
    """
    with writing_below(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if tidying:
            tidy(path.parent)
        temporary = path.with_name(temporary_name(path.name))
        try:
            yield temporary
            _sync(temporary)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if tidying:
            _sync(path.parent)


def point(path: Path, target: Path) -> None:
    """Make `path` a relative link to a file or folder; a former link or file is replaced at once.

    Where links cannot be made, a file is copied, and for a folder `path` becomes a text file with its name.
    """
    with writing(path) as temporary:
        try:
            temporary.symlink_to(os.path.relpath(target, path.parent))
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            if target.is_dir():
                temporary.write_text(f"{target.name}\n")
            else:
                shutil.copyfile(target, temporary)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give the body an empty folder to fill, which takes the place of `folder` once the body has ended.

    At every moment the old or the new folder is on the disk. A writer that is killed between the two renames leaves the
    old one under another name; `restore` gives it its name back.
    If the body or the disk fails, `folder` stays as it was and nothing else is left.

    Raises:
        UserError: The disk is full or write-protected.
    """
    with writing_below(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tidy(folder.parent)
        new = folder.with_name(temporary_name(folder.name))
        try:
            new.mkdir()
            yield new
            for path in (*new.rglob("*"), new):
                _sync(path)
            old = _swap(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            restore(folder)
            raise
        _sync(folder.parent)
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _swap(new: Path, folder: Path) -> list[Path]:
    """Rename `new` to `folder`; return what was there, moved aside."""
    old = list[Path]()
    while True:
        aside = folder.with_name(temporary_name(folder.name, "before"))
        with suppress(FileNotFoundError):
            folder.rename(aside)
            old.append(aside)
        try:
            new.rename(folder)
        except OSError as error:  # another writer, or a reader's `restore`, came in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return old


def restore(folder: Path) -> None:
    """Put back a folder that a writer moved aside and did not replace."""
    with suppress(OSError):
        if folder.exists():
            return
        aside = [path for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}.before-")]
        if aside:
            max(aside, key=lambda path: path.stat().st_mtime).rename(folder)


def tidy(parent: Path) -> None:
    """Put right what killed writers of this machine left in a folder; what living ones write there stays."""
    for path in parent.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or not _has_ended(found["host"], int(found["pid"])):
            continue
        restore(parent / found["name"])
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_name(name: str, role: str = "writing") -> str:
    """Return a name that no other writer takes."""
    return f".{name}.{role}-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"


def _has_ended(host: str, pid: int) -> bool:
    if host != _HOST:
        return False  # nobody here can know
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync folders
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


@cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    log.warning("%s cannot be locked (%s); run one command at a time there", folder, reason)


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None] = lambda owner: None) -> Iterator[None]:
    """Hold a lock file while the body runs, after waiting for the process that holds it.

    The kernel releases it when its process ends, however it ends. The file stays. On a file system that has no locks
    the body runs with a warning.

    Args:
        path: The lock file.
        on_wait: Is told once whom this process waits for, such as `process 12 on host, since 2026-01-31 12:00:00`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_wait(file.read() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            _warn_of_no_locks(path.parent, os.strerror(error.errno))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {_HOST}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock file; writes nothing."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return False
    return False
