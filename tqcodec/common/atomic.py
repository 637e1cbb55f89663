"""Files that appear whole or not at all. Imports nothing but the standard library and `kinds`."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqcodec.common.checks import PathLike, path_of

TEMPORARY = ".tqc-"  # names of temporary files begin so
DESCRIPTORS = Path("/proc/self/fd")  # where Linux gives files without names a path


def check_writable(path: PathLike) -> None:
    """Refuse, before any work, a path that `replacing` could not write.

    Whether a folder takes files is found by making one, an empty one, and removing it: permissions
    say too little of file systems that are full, mounted for reading or not real.

    Raises:
        TypeError: not a path.
        OSError: says why; its `filename` is the path as it was given.
    """
    given = path_of(path)
    try:
        _check(given)
    except OSError as error:
        raise _naming(error, given) from error
    except ValueError as error:  # a NUL, or what the encoding of file names lacks
        raise OSError(errno.EINVAL, "is not the name of a file", given) from error


def _check(given: str) -> None:
    if _is_special(Path(given)):
        if not os.access(given, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    target = Path(os.path.realpath(given))
    if target.is_dir() or given.endswith((os.sep, os.altsep or os.sep)):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file")
    if not target.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write it to")
    if not target.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} is not a folder")
    if target.exists():
        _check_sticky(target)
    else:
        _check_name(target)
    with _new_file(target):
        pass


def _check_sticky(target: Path) -> None:
    """In a folder such as /tmp only the owner of a file may put another in its place."""
    folder, file, user = target.parent.stat(), target.stat(), getattr(os, "geteuid", lambda: 0)()
    if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, file.st_uid):
        raise PermissionError(errno.EPERM, "belongs to another user")


def _check_name(target: Path) -> None:
    """Names may be too long, which the name of a temporary file beside it would not show."""
    try:
        target.lstat()
    except FileNotFoundError:
        return


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to: what is written becomes `path` at the end, or vanishes on any error.

    Links are followed. What is no regular file, such as `/dev/null`, is written to directly. Where
    the system has files without names it vanishes as well with a process that is killed.

    Raises:
        OSError: it cannot be written; where the temporary file is in the way, `path` is named.
    """
    try:
        if _is_special(path):
            yield path
            return
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
        with _new_file(target) as temporary:
            mode = (target if target.exists() else temporary).stat().st_mode
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _rename(temporary, target)
    except OSError as error:
        name = Path(str(error.filename or TEMPORARY))
        if not name.name.startswith(TEMPORARY) and name.parent != DESCRIPTORS:  # of something else
            raise
        raise _naming(error, str(path)) from error


def _is_special(path: Path) -> bool:
    """True for devices and pipes, also by links such as /dev/stdout, whose target has no name."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """An empty file in the folder of `target`, under a name of its own or none; gone afterwards."""
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):  # not every system, nor every file system, has them
        descriptor = -1
    nameless = DESCRIPTORS / str(descriptor)
    if descriptor >= 0 and nameless.exists():
        try:
            yield nameless
        finally:
            os.close(descriptor)
        return
    if descriptor >= 0:
        os.close(descriptor)
    temporary = _beside(target)
    try:
        temporary.touch()
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _rename(temporary: Path, target: Path) -> None:
    """Put a file of `_new_file` in the place of `target`; it takes two calls if it has no name."""
    if temporary.parent != DESCRIPTORS:
        temporary.replace(target)
        return
    named = _beside(target)
    try:
        try:
            _link(temporary, named)
        except OSError:  # some file systems have such files, but give them no name
            shutil.copyfile(temporary, named)
            shutil.copymode(temporary, named)
        named.replace(target)
    finally:
        named.unlink(missing_ok=True)


def _link(temporary: Path, named: Path) -> None:
    folder = os.open(temporary.parent, os.O_RDONLY)
    try:
        # With a folder's descriptor the link in it is followed, to the file itself.
        os.link(temporary.name, named, src_dir_fd=folder)
    finally:
        os.close(folder)


def _beside(target: Path) -> Path:
    return target.with_name(TEMPORARY + secrets.token_hex(8))


def _naming(error: OSError, given: str) -> OSError:
    """The error with the name that the user gave: no temporary file's, and not none."""
    # The number chooses the class, such as PermissionError.
    return OSError(error.errno, error.strerror or str(error), given)
