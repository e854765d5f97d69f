"""Writing so that nothing is ever half there, and what other file systems answer. Kills are in test_faults.py."""

import errno
import json
import multiprocessing
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from banlib.runs import disk
from banlib.runs.recipe import BadInput

LOCK_REFUSALS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EACCES]
FSYNC_REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM]
OUR_HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def first_process(monkeypatch):
    monkeypatch.setattr(disk, "_said", set())
    monkeypatch.setattr(disk, "PATIENCE", 0.5)


def refuse(number):
    """A system call that this file system does not have."""

    def call(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return call


# Where banlib keeps things


def test_home_is_the_folder_that_banlib_home_names(monkeypatch, tmp_path):
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path / "größer 猫"))
    assert disk.home() == tmp_path / "größer 猫" and not disk.home().exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BANLIB_HOME", "here")
    assert disk.home() == tmp_path / "here"
    monkeypatch.setenv("BANLIB_HOME", "~/there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disk.home() == tmp_path / "there"


def test_home_is_otherwise_in_the_platforms_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("BANLIB_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert disk.home().is_relative_to(tmp_path) and disk.home().name == "banlib"
    monkeypatch.setenv("BANLIB_HOME", "")
    assert disk.home().is_relative_to(tmp_path)


@pytest.fixture
def nobody(monkeypatch):
    """A container with a foreign uid: no HOME, and no such user."""
    for name in ("BANLIB_HOME", "HOME", "XDG_CACHE_HOME", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(f"getpwuid(): uid {uid}")))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: (_ for _ in ()).throw(KeyError(f"getpwnam(): name {name}")))


def test_an_unknown_user_without_a_home_needs_only_banlib_home(nobody, monkeypatch, tmp_path):
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path))
    assert disk.home() == tmp_path


@pytest.mark.parametrize("given", [None, "", "~/runs", "~stranger/runs"])
def test_without_either_one_sentence_names_banlib_home(nobody, monkeypatch, given):
    if given is not None:
        monkeypatch.setenv("BANLIB_HOME", given)
    with pytest.raises(BadInput, match="^no folder for runs and data: .*; set BANLIB_HOME to a folder that can be "):
        disk.home()


# Whole or not at all


def test_bytes_replace_bytes_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old and long")
    disk.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [child.name for child in tmp_path.iterdir()] == ["file"]


def test_case_23_nothing_is_written_through_a_planted_link(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("precious")
    (tmp_path / ".file.tmp").symlink_to(precious)
    disk.write_atomically(path, b"new")
    assert precious.read_text() == "precious" and path.read_bytes() == b"new" and not path.is_symlink()


def test_what_is_discarded_is_first_renamed(tmp_path, monkeypatch):
    folder, doomed = tmp_path / "run", tmp_path / "doomed"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr(shutil, "rmtree", refuse(errno.EIO))
    with pytest.raises(OSError):
        disk.discard(folder, doomed)
    assert not folder.exists() and (doomed / "manifest.json").exists()
    disk.discard(tmp_path / "nothing", doomed)  # nothing to do is no error


def test_a_folder_of_a_containers_lower_layer_cannot_be_renamed_and_is_discarded_anyway(tmp_path, monkeypatch):
    folder, doomed = tmp_path / "run", tmp_path / "doomed"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr(Path, "rename", refuse(errno.EXDEV))
    disk.discard(folder, doomed)
    assert not folder.exists() and not doomed.exists()


# A full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_where_and_how_much(tmp_path, monkeypatch, number):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse(number))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9**9, 9**9, 1_234_567_890))
    with pytest.raises(OSError) as caught:
        disk.write_atomically(tmp_path / "file", bytes(2_340_000))
    said = str(caught.value)
    assert said.startswith(f"cannot write to {tmp_path}: {os.strerror(number)}; needs 2.4 MB, 1,234.6 MB are free th")
    assert "BANLIB_HOME" in said and "\n" not in said and caught.value.errno == number
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1, "half a file fills it up"


def test_what_a_folder_needs_in_all_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match=f"{tmp_path}: No space left on device; needs 5.0 MB, "):
        disk.write_atomically(tmp_path / "file", b"1", needed=5_000_000)
    with pytest.raises(OSError, match=f"cannot write to {tmp_path}: .* needs 0.0 MB"), disk.room(tmp_path / "a" / "b"):
        refuse(errno.ENOSPC)()


def test_other_errors_keep_their_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        disk.write_atomically(tmp_path / "missing" / "file", b"new")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        disk.write_atomically(tmp_path / "file", b"old")
        with pytest.raises(OSError, match=f"cannot write to {tmp_path}: No space left on device; needs 0.2 MB, 0.1 MB"):
            disk.write_atomically(tmp_path / "file", bytes(200_000))
        assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"
        disk.write_atomically(tmp_path / "file", bytes(30_000))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# fsync refused


@pytest.mark.parametrize("number", FSYNC_REFUSALS)
def test_a_file_system_without_fsync_is_named_once_and_written_to(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.warns(UserWarning, match=f"the file system of {tmp_path} refuses fsync .*power failure") as said:
        for content in (b"1", b"2"):
            disk.write_atomically(tmp_path / "file", content)
    assert len(said) == 1 and (tmp_path / "file").read_bytes() == b"2"


def test_a_folder_that_cannot_be_opened_is_written_to(tmp_path, monkeypatch):
    really, refused = os.open, refuse(errno.EACCES)
    monkeypatch.setattr(os, "open", lambda path, *args: refused() if path == tmp_path else really(path, *args))
    disk.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_failing_disk_is_no_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        disk.write_atomically(tmp_path / "file", b"new")
    assert not (tmp_path / "file").exists()


# Locks


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "runs" / "locks" / "ab12.lock"


@pytest.fixture
def no_flock(monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))


def hold(lock, ready, leave, refuse_flock):
    if refuse_flock:
        import fcntl

        fcntl.flock = refuse(errno.ENOSYS)
    with disk.exclusive(lock, "run ab12"):
        ready.set()
        leave.wait()


@pytest.fixture
def holder(lock):
    """Start a process that holds the lock: holder(no kernel locks?) -> (process, event that lets it go)."""
    context, started = multiprocessing.get_context("fork"), []

    def start(refuse_flock):
        ready, leave = context.Event(), context.Event()
        process = context.Process(target=hold, args=(lock, ready, leave, refuse_flock), daemon=True)
        process.start()
        started.append(process)
        assert ready.wait(60)
        return process, leave

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_lock_is_held_by_one_and_leaves_no_note(lock):
    with warnings.catch_warnings(action="error"), disk.exclusive(lock, "run ab12"):
        note = json.loads(lock.with_suffix(".json").read_bytes())
        assert (note["process"], note["host"]) == (os.getpid(), OUR_HOST)
        held = f"^run ab12 is being trained by process {os.getpid()} on .* since 2.*; stop it first"
        with (
            pytest.raises(disk.Busy, match=held),
            disk.exclusive(lock, "run ab12"),
        ):
            pass
    assert [path.name for path in lock.parent.iterdir()] == ["ab12.lock"]


@pytest.mark.parametrize("refuse_flock", [False, True])
def test_a_living_holder_of_this_host_is_waited_for(lock, holder, capfd, monkeypatch, refuse_flock):
    monkeypatch.setattr(disk, "SILENT", 0)
    process, leave = holder(refuse_flock)
    if refuse_flock:
        import fcntl

        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(disk.Busy, match=f"run ab12 is being trained by process {process.pid} on "):
            disk.exclusive(lock, "run ab12").__enter__()
        timer = multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(1), leave.set()))
        timer.start()
        with disk.exclusive(lock, "run ab12", wait=lambda: None):
            process.join(60)
            assert process.exitcode == 0
        timer.join()
    said = capfd.readouterr().err
    assert re.search(f"run ab12 is being trained by process {process.pid} on .*; waiting for it\n", said)


@pytest.mark.parametrize("refuse_flock", [False, True])
def test_case_10_the_lock_of_a_killed_process_is_free(lock, holder, monkeypatch, refuse_flock):
    process, _ = holder(refuse_flock)
    process.kill()
    process.join()
    assert lock.with_suffix(".json").exists()
    if refuse_flock:
        import fcntl

        monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with warnings.catch_warnings(action="ignore"), disk.exclusive(lock, "run ab12"):
        assert json.loads(lock.with_suffix(".json").read_bytes())["process"] == os.getpid()
    assert not lock.with_suffix(".held").exists()


@pytest.mark.parametrize("number", LOCK_REFUSALS)
def test_a_file_system_without_locks_is_named_once_and_trained_on(lock, monkeypatch, number):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with pytest.warns(UserWarning, match="the file system of .* has no kernel locks .*one machine at a time") as said:
        for _ in range(2):
            with disk.exclusive(lock, "run ab12", wait=lambda: None):
                assert lock.with_suffix(".held").exists()
    assert len(said) == 1 and not lock.with_suffix(".held").exists()


@pytest.mark.parametrize("left", ["4711\nanother-host\n", ""])
def test_a_holder_that_cannot_be_seen_is_neither_waited_for_nor_robbed(lock, no_flock, left):
    """Of another machine, or one that says nothing."""
    lock.parent.mkdir(parents=True)
    held = lock.with_suffix(".held")
    held.write_text(left)
    if left:
        note = {"process": 4711, "host": "another-host", "since": "2026-01-01 00:00:00"}
        lock.with_suffix(".json").write_bytes(disk.dump(note))
    who = "process 4711 on another-host since 2026-01-01 00:00:00" if left else "another process"
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(disk.Busy, match=f"^run ab12 is being trained by {who}: {held} says so; remove it if no process"),
        disk.exclusive(lock, "run ab12", wait=lambda: None),
    ):
        pass
    assert held.read_text() == left
    held.unlink()
    with warnings.catch_warnings(action="ignore"), disk.exclusive(lock, "run ab12"):
        pass


@pytest.mark.parametrize("note", ["", "[]", "null", "{}", '{"process": 1}', "\xff", "[" * 100_000])
def test_a_strange_note_is_another_process(lock, note):
    with disk.exclusive(lock, "run ab12"):
        lock.with_suffix(".json").write_text(note, encoding="latin-1")
        with pytest.raises(disk.Busy, match="by another process; stop it first"), disk.exclusive(lock, "run ab12"):
            pass


def test_case_18_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder, so nothing can be made below it, not even by root")
    root = tmp_path / "file" / "runs"
    with (
        pytest.raises(OSError, match=f"^the store {root} is not writable .Not a directory.; set BANLIB_HOME to a fol"),
        disk.exclusive(root / "locks" / "ab12.lock", "run ab12"),
    ):
        pass


def test_a_lock_on_a_full_disk_says_so(lock, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="cannot write to .*: No space left on device"), disk.exclusive(lock, "run ab12"):
        pass
