"""Processes for tests to start, kill and let wait, and what two trainings of one run must have in common.

A fork server imports torch once and forks each child from there: a start takes some 50 ms instead of four seconds. It
never trains itself, so nothing that a fork cannot carry over (threads of autograd, a device) exists in it.
"""

import collections
import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import torch

from banlib.runs import fit, lineage
from banlib.runs.store import Store
from banlib.views import draw_epoch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["banlib.runs.lineage"])
TIMES = {"seconds", "train_seconds", "last_start_seconds", "images_per_second"}


def start(function, *args):
    """A child that runs function(*args) and exits with 0, or 1 if it raises."""
    child = context.Process(target=function, args=args, daemon=True)
    child.start()
    return child


def train(specs, root, save_seconds=0):
    """Train specs in order; a resume point after each epoch that took, with the one before, so many seconds."""
    torch.set_num_threads(1)
    os.environ["BANLIB_HOME"] = str(root)
    fit.SAVE_SECONDS = save_seconds
    for spec in specs:
        fit.fit(spec, Store(root), "cpu", threads=1, progress=False)


def train_lightly(specs, root):
    """`train`, without what takes seconds to import and is not needed: torch's compiler, scikit-learn."""
    train(specs, root)
    assert not {"torch._dynamo", "torch._inductor", "sklearn", "pandas"} & set(sys.modules)


def train_and_tell(specs, root, told):
    """`train`, then write {"trained": how many runs this process trained, "said": its standard error} to told."""
    count, really = collections.Counter(), fit.Training.run
    fit.Training.run = lambda *args: (count.update(["trained"]), really(*args))
    with open(told.with_suffix(".stderr"), "w", buffering=1) as sys.stderr:
        train(specs, root)
    said = told.with_suffix(".stderr").read_text()
    told.write_text(json.dumps({"trained": count["trained"], "said": said}))


def train_until_operation(specs, root, number, told):
    """`train`, but die by SIGKILL just before the number-th operation on the store's files; told gets its name.

    Operations are those that change the disk: opening a file to write, fsync, rename, delete, make and remove a folder.
    Before an fsync of a file, half of what was written to it is taken away again: a write that the kill cut in two.
    Lives if there are fewer operations; told then gets their list.
    """
    done, sync = [], os.fsync

    def operation(name, path, handle=None):
        done.append(f"{name} {kind_of(path)}")
        if len(done) == number:
            if handle is not None and os.fstat(handle).st_size and Path(path).is_file():
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            told.write_text(done[-1])
            os.kill(os.getpid(), signal.SIGKILL)

    def audited(event, args):
        if event == "open" and str(args[0]).startswith(str(root)) and args[2] & (os.O_WRONLY | os.O_RDWR):
            operation("open", args[0])
        elif event == "os.remove" and args[1] != -1:  # rmtree, which names files by their folder, in any order
            operation("remove", "file of a folder")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            operation(event.removeprefix("os."), args[0])

    def synced(handle):
        operation("fsync", os.readlink(f"/proc/self/fd/{handle}"), handle)
        sync(handle)

    os.fsync = synced
    sys.addaudithook(audited)  # the event comes before the operation
    train(specs, root)
    everything, number = list(done), None
    told.write_text(json.dumps(everything))


def kind_of(path):
    """A file's name without its numbers: "resume-000003-…" is "resume"."""
    name = re.sub(r"-[0-9]+-[0-9]+-[0-9a-f]{64}\.safetensors", "", Path(os.fsdecode(path)).name)
    return re.sub(r"[0-9a-f]{16}", "<id>", name)


def claim_and_wait(spec, root, ready):
    with Store(root).claim(spec):
        ready.set()
        signal.pause()


def draw(spec, count, views, told):
    told.send([part.tolist() for part in draw_epoch(spec.stream("epoch", 3), count, views)])


def outcome(run):
    """All of a run but what clocks say: file contents, metrics, results."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in
            map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())]  # fmt: skip
    results = {name: value for name, value in run.results.items() if name not in TIMES}
    return {
        "weights": (run.folder / "weights.safetensors").read_bytes(),
        "probabilities": (run.folder / "probabilities.safetensors").read_bytes(),
        "metrics": rows,
        "results": results,
    }


def read_everything(root, told):
    """Do all that reads a store; told gets the list of operations that would have changed the disk."""
    done = []

    def audited(event, args):
        if event == "open" and str(args[0]).startswith(str(root)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            done.append(f"open {args[0]}")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(args[0]).startswith(str(root)):
            done.append(f"{event} {args[0]}")

    store = Store(root)
    sys.addaudithook(audited)
    for run_id in store.ids():
        run = store.load(run_id)
        assert store.status(run_id) == "finished" and not store.problems(run_id)
        assert len(run.metrics) and len(run.probabilities) and fit.network_of(run)
        fit.fit(run.spec, store, "cpu", progress=False)
    lineage.recorded(store)
    told.write_text(json.dumps(done))
