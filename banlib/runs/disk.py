"""Files that no crash leaves half written, locks, and file systems that refuse them."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
from pathlib import Path

import platformdirs
from filelock import FileLock, SoftFileLock, Timeout

from banlib.runs.recipe import BadInput

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# what CIFS, some FUSE and their like answer to fsync, of a file or of a folder
NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY}
NO_FSYNC |= {errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR}
# what reading a damaged or planted file can raise; RuntimeError: torch's, and RecursionError
STRANGE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
STRANGE += (RuntimeError,)
SILENT = 5  # seconds that a process waits before it says for whom
PATIENCE = 3  # seconds; in them filelock removes what a dead process of this host held
_said = set()


class Busy(RuntimeError):
    """Another process has a run; the message says which."""


def home():
    """The folder of all that banlib keeps: $BANLIB_HOME, else the platform's cache folder.

    Absolute; need not exist. Raises BadInput where there is neither.
    """
    path = os.environ.get("BANLIB_HOME")
    try:
        path = path or platformdirs.user_cache_dir("banlib", appauthor=False)
        return Path(path).expanduser().absolute()
    except (RuntimeError, LookupError, OSError) as error:
        remedy = "set BANLIB_HOME to a folder that can be written"
        raise BadInput(f"no folder for runs and data: {error}; {remedy}") from None


def say_once(kind, folder, sentence):
    """Warn, once in this process for each kind of refusal and file system."""
    key = kind, os.stat(folder).st_dev
    if key not in _said:
        _said.add(key)
        warnings.warn(f"the file system of {folder} {sentence}", stacklevel=3)


@contextlib.contextmanager
def room(folder, needed=0):
    """Make the OSError of a full disk say where, how many bytes are needed, how many are free."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or not error.strerror:  # not full, or said already
            raise
        folder = next(path for path in (folder, *folder.parents) if path.exists())
        sizes = needed, shutil.disk_usage(folder).free
        need, free = (f"{-(-size // 100_000) / 10:,} MB" for size in sizes)
        full = OSError(
            f"cannot write to {folder}: {error.strerror}; needs {need}, {free} are free there; "
            "make room or set BANLIB_HOME to a folder on another disk, then start again"
        )
        full.errno = error.errno
        raise full from None


def write_atomically(path, raw, needed=0):
    """Put bytes at path so that a crash leaves the old file or the new one, never a part.

    needed: bytes of this file and those that belong to it, for the message of a full disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with room(path.parent, needed or len(raw)):
        temporary.unlink(missing_ok=True)  # a crash's, or a planted link: not to be written through
        try:
            with open(temporary, "xb") as file:
                file.write(raw)
                file.flush()
                sync(file.fileno(), path.parent)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # half a file would keep a full disk full
            raise
        sync_folder(path.parent)


def sync(handle, folder):
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
        lost = "a crash of the program costs nothing, a power failure may cost the newest files"
        say_once("fsync", folder, f"refuses fsync ({error.strerror}): {lost}")


def sync_folder(folder):
    if os.name != "posix":  # a folder cannot be opened there, and renames are durable by themselves
        return
    with contextlib.suppress(PermissionError):  # a folder that can be written, not read
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync(handle, folder)
        finally:
            os.close(handle)


def discard(folder, doomed=None):
    """Delete a folder if it is there.

    It is first renamed to doomed, if given: gone at once and whole, so that a crash leaves litter
    under that name but never half a run.
    """
    if doomed is not None and folder.exists():
        try:
            folder = folder.rename(doomed)
        except OSError as error:
            if error.errno != errno.EXDEV:  # a lower layer of a container's file system
                raise
            (folder / "manifest.json").unlink(missing_ok=True)  # a part is not taken for a run
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def exclusive(path, what, wait=None):
    """Hold the lock `<store>/locks/<run id>.lock` of a run, which `what` names in messages.

    A kernel lock: a crash frees it, no clock is read. Where the file system has none, a warning
    says so once and a file that names the holder stands in. wait: called each second in which
    another process has it, and may raise; without it Busy is raised at once, as for a holder that
    can't be seen from here. OSError if the store cannot be written.
    """
    lock, note = lock_of(path), path.with_suffix(".json")
    soft = isinstance(lock, SoftFileLock)
    try:
        lock.acquire(timeout=PATIENCE if soft else 0)
    except Timeout:
        holder, host = holder_of(note)
        said = f"{what} is being trained by {holder}"
        if soft and host != socket.gethostname():
            file = f"{lock.lock_file} says so; remove it if no process has the run"
            raise Busy(f"{said}: {file}") from None
        if not wait:
            raise Busy(f"{said}; stop it first") from None
        try:
            lock.acquire(timeout=SILENT)
        except Timeout:
            print(f"{said}; waiting for it", file=sys.stderr)
            while not lock.is_locked:
                wait()
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=1)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomically(note, dump(holder))
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()
        lock.release()


def lock_of(path):
    """The kind of lock that works there: a fresh file that nobody knows can be locked at once."""
    root = path.parent.parent
    try:
        with room(root):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent) as probe:
                refusal = kernel_refusal(probe)
    except OSError as error:
        if not error.strerror:
            raise
        remedy = "set BANLIB_HOME to a folder that is"
        raise OSError(f"the store {root} is not writable ({error.strerror}); {remedy}") from None
    if refusal is None:
        return FileLock(path)
    instead = "a file naming the holder stands in; train on one machine at a time there"
    say_once("lock", path.parent, f"has no kernel locks ({refusal}): {instead}")
    return SoftFileLock(path.with_suffix(".held"))


def kernel_refusal(file):
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows, whose own locks work on all its file systems
        return None
    except OSError as error:
        return error.strerror


def holder_of(note):
    """(who holds a lock since when, on which host)."""
    try:
        holder = json.loads(note.read_bytes())
        process, host = holder["process"], holder["host"]
        return f"process {process} on {host} since {holder['since']}", host
    except STRANGE:
        return "another process", None


def dump(value):
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def problem_of(path, size, digest):
    """What is wrong with a file that should have this size and SHA-256, or None."""
    try:
        if path.is_symlink() or not path.is_file():
            return f"{path.name} is missing, a link, or no file"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes, expected {size}"
        with open(path, "rb") as file:
            if (found := hashlib.file_digest(file, "sha256").hexdigest()) != digest:
                return f"{path.name} has SHA-256 {found[:16]}…, expected {str(digest)[:16]}…"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
