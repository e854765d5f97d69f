"""Runs on disk, found by run id: committed whole or not at all, checked when read, held by one process when written.

    <root>/<run id>/            a finished run: FILES and a manifest of their SHA-256 and size; one rename commits
    <root>/live/<run id>/       work in progress: the two newest resume points, metrics so far, or why it diverged
    <root>/locks/<run id>.lock  a kernel lock: a crash frees it, no clock is read
    <root>/aside/               finished runs found damaged when training wanted them
    <root>/tmp-<run id>/        what a crash left of a commit or a removal; the next owner of the lock deletes it

No format we know notices a flipped bit by itself, so every file here carries a digest: finished files in the manifest,
a resume point in its own name. Files hold JSON and safetensors; opening them executes nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout

from banlib.data import home
from banlib.recipe import RUN_ID, RunSpec, plain

FILES = ("run.json", "metrics.jsonl", "weights.safetensors", "probabilities.safetensors")
RESUME = re.compile(r"resume-(\d{6})-(\d+)-([0-9a-f]{64})\.safetensors")
LITTER = re.compile(r"\.(resume-.+|diverged\.json|metrics\.jsonl)\.tmp")


class RunMissing(LookupError):
    """No finished run has this id."""


class RunDamaged(RuntimeError):
    """A run's files are not what was committed."""


class Diverged(RuntimeError):
    """Training met a loss or gradient that is NaN, infinite or exploding."""


@dataclass(frozen=True)
class Run:
    """A finished run. results: test_error and train_error in %, test_nll in nats, seconds, images_per_second, ...
    environments: one dict for each time it was started (hardware, versions, threads, precision, commit)."""

    spec: RunSpec
    results: dict
    environments: list
    folder: Path

    @property
    def run_id(self):
        return self.folder.name

    @cached_property
    def metrics(self):
        """One row per epoch: epoch, lr, train_loss (nats), train_error (%), test_error (%, where tested), seconds."""
        return pd.DataFrame(read_metrics(self.folder / "metrics.jsonl"))

    @cached_property
    def tested(self):
        return safetensors.torch.load_file(self.folder / "probabilities.safetensors")

    @property
    def probabilities(self):
        """float16 [test images, classes], rows in the dataset's order."""
        return self.tested["probabilities"]

    @property
    def labels(self):
        """The test labels, int64 [test images], in the same order: a record can be read where the dataset is not."""
        return self.tested["labels"]

    def weights(self):
        """The state dict at the last epoch. Records shipped in results/ come without: FileNotFoundError."""
        path = self.folder / "weights.safetensors"
        if not path.exists():
            raise FileNotFoundError(f"run {self.run_id} is a record without weights; train it to get them")
        return safetensors.torch.load_file(path)


class Store:
    """A folder of runs. root: a path; by default `<home>/runs`. Reading needs no write access."""

    def __init__(self, root=None):
        self.root = Path(root).absolute() if root is not None else home() / "runs"

    def __repr__(self):
        return f"Store({str(self.root)!r})"

    def folder(self, run_id, *parts):
        """The path of a run; ValueError for anything but an id, or for a link that leads out of the store."""
        if not isinstance(run_id, str) or not re.fullmatch(RUN_ID, run_id):
            raise ValueError(f"a run id is 16 digits of 0-9 and a-f, got {run_id!r} (banlib runs list shows all)")
        return self.inside(*parts, run_id)

    def inside(self, *parts):
        """A path below the root; ValueError if it is a link, or if one leads out of the store on the way."""
        path = self.root.joinpath(*parts)
        if path.is_symlink() or not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} is a link out of the store; links are refused, remove it")
        return path

    def lock(self, run_id):
        """(kernel lock, path of the note that says who holds it). OSError if the store cannot be written."""
        locks, path = self.inside("locks"), self.inside("locks", f"{run_id}.lock")
        try:
            locks.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise OSError(f"cannot train or remove: the store {self.root} is not writable ({error.strerror}); "
                          "set BANLIB_HOME to a folder that is") from None  # fmt: skip
        return FileLock(path), locks / f"{run_id}.json"

    def ids(self):
        """Ids of every run with a folder, finished or live, sorted."""
        found = set()
        for parent in (self.root, self.root / "live"):
            if parent.is_dir():
                found |= {path.name for path in parent.iterdir() if re.fullmatch(RUN_ID, path.name)}
        return sorted(found)

    def find(self, prefix):
        """The one id that starts with prefix; ValueError if none or several do."""
        matches = [run_id for run_id in self.ids() if run_id.startswith(str(prefix))]
        if len(matches) != 1:
            what = f"{len(matches)} runs start" if matches else "no run starts"
            raise ValueError(f"{what} with {str(prefix)!r} in {self.root} (banlib runs list shows all)")
        return matches[0]

    def status(self, run_id):
        """"finished", "damaged", "diverged", "live" or "missing". Reads and checks every file of a finished run."""
        if self.folder(run_id).exists():
            return "damaged" if self.problems(run_id) else "finished"
        live = self.folder(run_id, "live")
        if (live / "diverged.json").exists():
            return "diverged"
        return "live" if live.exists() else "missing"

    def problems(self, run_id):
        """What is wrong with a finished run's files, a sentence each; empty if every byte is as committed."""
        try:
            folder = self.folder(run_id)
            manifest = json.loads(self.inside(run_id, "manifest.json").read_bytes())["files"]
            expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"run {run_id}: manifest.json cannot be used: {error}"]
        found = []
        for name, (size, digest) in expected.items():
            path = folder / name
            if name not in FILES or path.is_symlink() or not path.is_file():
                found.append(f"run {run_id}: {name} is missing, a link, or not a file of a run")
            elif path.stat().st_size != size:
                found.append(f"run {run_id}: {name} has {path.stat().st_size} bytes, expected {size}")
            elif sha256(path) != digest:
                found.append(f"run {run_id}: {name} has SHA-256 {sha256(path)[:16]}…, expected {digest[:16]}…")
        missing = {"run.json", "metrics.jsonl", "probabilities.safetensors"} - set(expected)
        found += [f"run {run_id}: {name} is not in the manifest" for name in sorted(missing)]
        return edited_spec(folder) + found

    def load(self, run_id):
        """The finished run, after every file was checked. Raises RunMissing or RunDamaged with one sentence."""
        folder = self.folder(run_id)
        if not folder.exists():
            raise RunMissing(f"no finished run {run_id} in {self.root} (it is {self.status(run_id)})")
        if problems := self.problems(run_id):
            raise RunDamaged(problems[0])
        record = json.loads((folder / "run.json").read_bytes())
        return Run(RunSpec(**record["spec"]), record["results"], record["environments"], folder)

    @contextlib.contextmanager
    def claim(self, spec):
        """The right to train spec, as a `Work`; waits, and says for whom, while another process has it."""
        run_id = spec.run_id
        live, finished = self.folder(run_id, "live"), self.folder(run_id)
        building = self.inside(f"tmp-{run_id}")
        lock, holder = self.lock(run_id)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"run {run_id} ({spec.network} {spec.name}, seed {spec.seed}) is being trained by "
                  f"{holder_of(holder)}; waiting for it", file=sys.stderr)  # fmt: skip
            lock.acquire()
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            write_atomically(holder, dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}))
            discard(building)
            if finished.exists() and (problems := self.problems(run_id)):
                raise RunDamaged(f"{problems[0]}; set aside as {self.set_aside(finished)}, "
                                 "start again to train it anew")  # fmt: skip
            if finished.exists():  # another process finished it, or a crash came just after the commit
                discard(live, building)
            else:
                live.mkdir(parents=True, exist_ok=True)
                for path in live.iterdir():
                    if LITTER.fullmatch(path.name):
                        path.unlink()
            yield Work(spec, live, finished, building)
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()
            lock.release()

    def tidy(self, run_id):
        """Delete the resume points of a finished run that a crash just after its commit left, if that can be done."""
        live, doomed = self.folder(run_id, "live"), self.inside(f"tmp-{run_id}")
        if live.exists() or doomed.exists():
            with contextlib.suppress(OSError):  # read-only, or held by the process that is doing it
                with self.lock(run_id)[0].acquire(timeout=0):
                    discard(doomed)
                    discard(live, doomed)

    def remove(self, run_id):
        """Delete a run, finished or live, unless a process is training it."""
        folders, doomed = [self.folder(run_id), self.folder(run_id, "live")], self.inside(f"tmp-{run_id}")
        lock, holder = self.lock(run_id)
        try:
            with lock.acquire(timeout=0):
                discard(doomed)
                for folder in folders:
                    discard(folder, doomed)
        except Timeout:
            raise RuntimeError(f"run {run_id} is being trained by {holder_of(holder)}; stop it first") from None

    def set_aside(self, folder):
        """Move a damaged run out of the way, where a person can look at it. Returns where."""
        aside, number = self.inside("aside"), 1
        aside.mkdir(exist_ok=True)
        while (target := aside / f"{folder.name}-{number}").exists():
            number += 1
        folder.rename(target)
        return target

    def export(self, run_id, root):
        """Copy a finished run without its weights into another store, for results/. Returns the copy."""
        run, target = self.load(run_id), Store(root)
        if target.folder(run_id).exists():
            return target.load(run_id)
        contents = {name: (run.folder / name).read_bytes() for name in FILES if name != "weights.safetensors"}
        building = target.inside(f"tmp-{run_id}")
        discard(building)
        commit(contents, building, target.folder(run_id))
        return target.load(run_id)


class Work:
    """A run in progress, held under its lock."""

    def __init__(self, spec, live, finished, building):
        self.spec, self.live, self.finished, self.building = spec, live, finished, building
        self.newest = None  # name of the newest resume point known to be whole

    def diverged(self):
        """The sentence a diverged run left, or None."""
        path = self.live / "diverged.json"
        return json.loads(path.read_bytes())["sentence"] if path.exists() else None

    def give_up(self, sentence, **where):
        """Record that training diverged; such a run never becomes a teacher."""
        write_atomically(self.live / "diverged.json", dump({"sentence": sentence, **where}))

    def resume_points(self):
        """Paths of the resume points, newest first."""
        return sorted((path for path in self.live.iterdir() if RESUME.fullmatch(path.name)), reverse=True)

    def resume(self):
        """(epoch, tensors, state) of the newest resume point that is whole, or None for a fresh start.

        A damaged one is reported in a sentence and the one before it is used. If all are damaged nothing is
        overwritten: RunDamaged, because going on without would be a silent restart.
        """
        paths = self.resume_points()
        for path in paths:
            epoch, size, digest = RESUME.fullmatch(path.name).groups()
            raw = b"" if path.is_symlink() else path.read_bytes()
            if len(raw) == int(size) and hashlib.sha256(raw).hexdigest() == digest:
                self.newest = path.name
                return int(epoch), *self.unpack(path, int(epoch), raw)
            what = f"{len(raw)} bytes, expected {size}" if len(raw) != int(size) else "a digest that does not match"
            warnings.warn(f"resume point {path.name[:13]} of run {self.spec.run_id} has {what}; trying the one before")
        if paths:
            raise RunDamaged(f"no resume point of run {self.spec.run_id} is whole; `banlib runs rm {self.spec.run_id}` "
                             "starts it over")  # fmt: skip
        metrics = self.live / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size:  # written after the first resume point, so there was one
            raise RunDamaged(f"run {self.spec.run_id} has metrics of finished epochs but no resume point; "
                             f"`banlib runs rm {self.spec.run_id}` starts it over")  # fmt: skip
        return None

    def unpack(self, path, epoch, raw):
        state = json.loads(header(raw).get("__metadata__", {}).get("state", "{}"))
        if missing := {"spec", "rows", "environments"} - set(state):
            raise RunDamaged(f"resume point {path} lacks {', '.join(sorted(missing))}; it is refused, "
                             f"`banlib runs rm {self.spec.run_id}` starts over")  # fmt: skip
        if state["spec"] != self.spec.canonical():
            raise RunDamaged(f"resume point {path} belongs to another spec; `banlib runs rm {self.spec.run_id}`")
        if [row["epoch"] for row in state["rows"]] != list(range(1, epoch + 1)):
            raise RunDamaged(f"resume point {path} lacks the metrics of some of its {epoch} epochs; it is refused, "
                             f"`banlib runs rm {self.spec.run_id}` starts over")  # fmt: skip
        return safetensors.torch.load(raw), state

    def save(self, epoch, tensors, rows, environments):
        """Write the resume point of a finished epoch and keep the whole one before it. rows: metrics so far."""
        state = {"spec": self.spec.canonical(), "rows": rows, "environments": environments}
        raw = serialize(tensors, {"state": json.dumps(state, allow_nan=False)})
        name = f"resume-{epoch:06d}-{len(raw)}-{hashlib.sha256(raw).hexdigest()}.safetensors"
        write_atomically(self.live / name, raw)
        for old in self.resume_points():
            if old.name not in (name, self.newest):
                old.unlink()
        self.newest = name

    def log(self, rows, fresh=False):
        """Let others watch: metrics.jsonl of the live run. The resume point holds the rows that count, so this file
        is written anew at a start (no epoch twice, however the last one ended) and appended to after."""
        path = self.live / "metrics.jsonl"
        if fresh:
            write_atomically(path, metrics_text(rows))
        else:
            with open(path, "ab") as file:
                file.write(metrics_text(rows[-1:]))

    def commit(self, results, rows, environments, weights, probabilities, labels):
        """Turn the work into a finished run, by one rename. weights: state dict; probabilities: float16 [n, classes]
        and labels: int64 [n], of the test images."""
        spec = {"spec": self.spec.canonical()}
        contents = {
            "run.json": dump({"spec": self.spec.model_dump(mode="json"), "results": results,
                              "environments": environments}),
            "metrics.jsonl": metrics_text(rows),
            "weights.safetensors": safetensors.torch.save(weights, metadata=spec),
            "probabilities.safetensors": safetensors.torch.save(
                {"probabilities": probabilities, "labels": labels}, metadata=spec
            ),
        }  # fmt: skip
        commit(contents, self.building, self.finished)
        discard(self.live, self.building)


def commit(contents, building, finished):
    """Write the files of a run into the folder `building`, the manifest last, and rename it to `finished`."""
    building.mkdir(parents=True)
    for name, raw in contents.items():
        write_atomically(building / name, raw)
    entries = {name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in contents.items()}
    write_atomically(building / "manifest.json", dump({"files": entries}))
    os.rename(building, finished)
    sync_folder(finished.parent)


def write_atomically(path, raw):
    """Put bytes at path so that a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # a crash left it, or somebody planted a link that must not be written through
    with open(temporary, "xb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder):
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are durable by themselves
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def discard(folder, doomed=None):
    """Delete a folder if it is there. It is first renamed to doomed, if given: gone at once and whole, so that a crash
    leaves litter under that name but never half a run."""
    if doomed is not None and folder.exists():
        folder.rename(doomed)
        folder = doomed
    if folder.exists():
        shutil.rmtree(folder)


def edited_spec(folder):
    """A sentence if run.json's spec does not hash to the folder's name, naming the field that differs."""
    try:
        stored = json.loads((folder / "run.json").read_bytes())["spec"]
        run_id = RunSpec(**stored).run_id
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"run {folder.name}: run.json holds no valid spec: {plain(error)}"]
    if run_id == folder.name:
        return []
    sentence = f"run {folder.name}: the folder says {folder.name}, the spec hashes to {run_id}"
    with contextlib.suppress(Exception):  # the copy that travels with the probabilities may be damaged too
        raw = (folder / "probabilities.safetensors").read_bytes()
        original = json.loads(header(raw)["__metadata__"]["spec"])
        fields = [name for name in leaves(original) if leaves(original)[name] != leaves(stored).get(name)]
        sentence += f", field {', '.join(fields)} differs"
    return [sentence]


def leaves(spec):
    """A nested dict as {"recipe.lr": value}."""
    flat = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in leaves(value).items()}
        else:
            flat[name] = value
    return flat


def serialize(tensors, metadata):
    """The bytes that `safetensors.torch.save` gives for {name: contiguous float32 or int64 tensor}.

    Eight bytes of the header's length, the header as JSON, then the tensors, wide types first. Written out because a
    resume point holds some hundred small tensors and is made after each epoch: for 139 of them the library takes
    2.5 ms, this 0.6.
    """
    described, parts, end = {"__metadata__": metadata}, [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, part = end, tensor.detach().cpu().numpy().tobytes()
        end += len(part)
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        described[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        parts.append(part)
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def header(raw):
    """The JSON header of a safetensors file's bytes."""
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def read_metrics(path):
    """Rows of a metrics.jsonl. A torn last line (a crash while appending) is dropped with a warning."""
    lines = path.read_bytes().split(b"\n")
    rows = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            if number < len(lines):
                raise RunDamaged(f"{path}: line {number} is no JSON") from None
            warnings.warn(f"{path}: the torn last line was dropped")
            continue
        if row is not None:
            rows[row["epoch"]] = row  # the later of two rows for one epoch
    return list(rows.values())


def metrics_text(rows):
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def dump(value):
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holder_of(path):
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
