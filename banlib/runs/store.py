"""Runs on disk, found by id: committed whole or not at all, checked when read, written by one.

<root>/<run id>/            a finished run: its files, and a manifest of their SHA-256 and size
<root>/live/<run id>/       work in progress: two resume points, or why it diverged
<root>/locks/<run id>.lock  see disk.exclusive
<root>/aside/               finished runs found damaged when training wanted them
<root>/tmp-<run id>*        left by a crash in a commit or a removal; the next owner deletes it
"""

import contextlib
import os
import re
import shutil
import warnings
from functools import cached_property
from pathlib import Path

from filelock import SoftFileLock

from banlib.runs import work
from banlib.runs.disk import STRANGE, discard, exclusive, home, problem_of, room
from banlib.runs.parameters import plain
from banlib.runs.recipe import RUN_ID, Frozen, RunSpec
from banlib.runs.work import RunDamaged, Work, read_json

RECORD, METRICS, WEIGHTS = "run.json", "metrics.jsonl", "weights.safetensors"
WHOLE, LIGHT = "probabilities.safetensors", "predictions.safetensors"  # a run has one of them
FILES = (RECORD, METRICS, WEIGHTS, WHOLE)
CHECKED = (*FILES, LIGHT)
# what they hold: name -> dtype, dimensions; a light record's classes are uint8 where 256 are enough
SHARES = {"true_probability": ("float16", 1), "confidence": ("float16", 1)}
OUTPUTS = [SHARES | {"predicted": (kind, 1), "labels": (kind, 1)} for kind in ("uint8", "int32")]
OUTPUTS.append({"probabilities": ("float16", 2), "labels": ("int64", 1)})


class RunMissing(LookupError):
    """No finished run has this id."""


class Diverged(RuntimeError):
    """Training met a loss or gradient that is NaN, infinite or exploding."""


class Run(Frozen):
    """A finished run. results: test_error and train_error in %, test_nll in nats, seconds, ...

    environments: one dict for each start (hardware, versions, threads, precision, commit).
    Of the test images, in the dataset's order, also in a light record: labels and predicted, int64
    [n]; true_probability (of the label) and confidence (the highest probability), float32 [n].
    """

    spec: RunSpec
    results: dict
    environments: list[dict]
    folder: Path

    @classmethod
    def at(cls, folder):
        return cls(**read_json(folder / RECORD), folder=folder)

    @property
    def run_id(self):
        return self.folder.name

    @property
    def light(self):
        return not (self.folder / WHOLE).exists()

    @cached_property
    def metrics(self):
        """A row per epoch: epoch, lr, train_loss (nats), train_error, test_error (%), seconds."""
        import pandas as pd  # which listing runs can do without

        return pd.DataFrame(work.read_metrics(self.folder / METRICS))

    def tensors(self, name):
        try:
            return work.unpacked((self.folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunDamaged(f"run {self.run_id}: {name}: {error}; {mend(self.folder)}") from None

    @cached_property
    def tested(self):
        """{name: tensor}, as stored, and what a light record holds."""
        tested = self.tensors(LIGHT if self.light else WHOLE)
        kinds = {name: (str(part.dtype)[6:], part.ndim) for name, part in tested.items()}
        try:
            if kinds not in OUTPUTS or len({len(part) for part in tested.values()}) != 1:
                raise ValueError(str(kinds))
            if not self.light:
                shares = tested["probabilities"]
                tested["confidence"], tested["predicted"] = shares.max(1)
                tested["true_probability"] = shares.gather(1, tested["labels"][:, None])[:, 0]
        except STRANGE as error:
            what = f"run {self.run_id} has other test outputs than a run: {error}"
            raise RunDamaged(f"{what}; {mend(self.folder)}") from None
        return tested

    labels = property(lambda self: self.tested["labels"].long())
    predicted = property(lambda self: self.tested["predicted"].long())
    true_probability = property(lambda self: self.tested["true_probability"].float())
    confidence = property(lambda self: self.tested["confidence"].float())

    @property
    def probabilities(self):
        """float16 [test images, classes]. LookupError for a light record."""
        if self.light:
            what = f"run {self.run_id} is a light record without probabilities of all classes"
            raise LookupError(f"{what}; train it to get them")
        return self.tested["probabilities"]

    @property
    def error(self):
        """Share of test images whose predicted class is wrong, %."""
        return 100 * (self.predicted != self.labels).double().mean().item()

    def weights(self):
        """The state dict at the last epoch. FileNotFoundError for a record shipped without."""
        if not (self.folder / WEIGHTS).exists():
            what = f"run {self.run_id} is a record without weights"
            raise FileNotFoundError(f"{what}; train it to get them")
        return self.tensors(WEIGHTS)


class Store:
    """A folder of runs. root: a path; by default `<home>/runs`. Reading needs no write access."""

    def __init__(self, root=None):
        self.root = Path(root).absolute() if root is not None else home() / "runs"

    def __repr__(self):
        return f"Store({str(self.root)!r})"

    def folder(self, run_id, *parts):
        """The path of a run; ValueError for anything but an id, or for a link."""
        if not isinstance(run_id, str) or not re.fullmatch(RUN_ID, run_id):
            what = f"a run id is 16 digits of 0-9 and a-f, got {run_id!r}"
            raise ValueError(f"{what} (banlib runs list shows all)")
        return self.inside(*parts, run_id)

    def inside(self, *parts):
        """A path below the root; ValueError if it is a link, or if one leads out on the way."""
        path = self.root.joinpath(*parts)
        if path.is_symlink() or not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{path} is a link out of the store; links are refused, remove it")
        return path

    def places(self, run_id):
        """Folders of a run: finished, in progress, being built or removed."""
        return self.folder(run_id), self.folder(run_id, "live"), self.inside(f"tmp-{run_id}")

    def lock(self, run_id, what=None, wait=None):
        return exclusive(self.inside("locks", f"{run_id}.lock"), what or f"run {run_id}", wait)

    def ids(self):
        """Ids of every run with a folder, finished or live, sorted."""
        parents = [path for path in (self.root, self.root / "live") if path.is_dir()]
        names = {path.name for parent in parents for path in parent.iterdir()}
        return sorted(name for name in names if re.fullmatch(RUN_ID, name))

    def find(self, prefix):
        """The one id that starts with prefix; ValueError if none or several do."""
        matches = [run_id for run_id in self.ids() if prefix and run_id.startswith(str(prefix))]
        if len(matches) != 1:
            what = f"{len(matches)} runs start" if matches else "no run starts"
            where = f"{str(prefix)!r} in {self.root}"
            raise ValueError(f"{what} with {where} (banlib runs list shows all)")
        return matches[0]

    def status(self, run_id):
        """'finished', 'damaged', 'diverged', 'live' or 'missing', after a check of every byte."""
        if self.folder(run_id).exists():
            return "damaged" if self.problems(run_id) else "finished"
        live = self.folder(run_id, "live")
        if (live / "diverged.json").exists():
            return "diverged"
        return "live" if live.exists() else "missing"

    def problems(self, run_id, names=CHECKED):
        """What is wrong with a finished run, a sentence each; empty if all is as committed.

        names: files whose every byte is checked.
        """
        try:
            folder = self.folder(run_id)
            entries = read_json(self.inside(run_id, "manifest.json"))["files"].items()
            files = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries}
        except STRANGE as error:
            return [f"run {run_id}: manifest.json cannot be used: {error}"]
        needed = (RECORD, METRICS, LIGHT if LIGHT in files else WHOLE)
        found = [record_problem(folder)]
        found += [f"{name} is not in the manifest" for name in needed if name not in files]
        found += [f"{name} is no file of a run" for name in files if name not in CHECKED]
        found += [problem_of(folder / name, *files[name]) for name in names if name in files]
        return [f"run {run_id}: {problem}" for problem in found if problem]

    def load(self, run_id):
        """The finished run, after every file was checked. Raises RunMissing or RunDamaged."""
        folder = self.folder(run_id)
        if not folder.exists():
            status = self.status(run_id)
            raise RunMissing(f"no finished run {run_id} in {self.root} (it is {status})")
        if problems := self.problems(run_id):
            raise RunDamaged(problems[0])
        return Run.at(folder)

    def overview(self):
        """{run id: {"spec", "results", "environments"}} of all finished runs, as plain dicts.

        Of their bytes only run.json is checked. A run that can't be read is left out, and said.
        """
        found = {}
        for run_id in self.ids():
            folder = self.root / run_id
            if os.path.lexists(folder) and (problems := self.problems(run_id, (RECORD,))):
                warnings.warn(f"{problems[0]}; it is left out; {mend(folder)}", stacklevel=2)
            elif folder.exists():
                found[run_id] = read_json(folder / RECORD)
        return found

    @contextlib.contextmanager
    def claim(self, spec, wait=lambda: None):
        """The right to train spec, as a `Work`; waits, and says for whom, while another has it.

        wait: called each second of that, and may raise.
        """
        run_id = spec.run_id
        finished, live, building = self.places(run_id)
        what = f"run {run_id} ({spec.network} {spec.name}, seed {spec.seed})"
        with self.lock(run_id, what, wait):
            discard(building)
            if finished.exists() and (problems := self.problems(run_id)):
                aside = f"set aside as {self.set_aside(finished)}"
                raise RunDamaged(f"{problems[0]}; {aside}, start again to train it anew")
            if finished.exists():  # by another process, or a crash came just after the commit
                discard(live, building)
            else:
                with room(self.root):
                    live.mkdir(parents=True, exist_ok=True)
                for path in live.iterdir():
                    if work.LITTER.fullmatch(path.name) and not path.is_dir():
                        path.unlink()
            yield Work(spec, live, finished, building)

    def remove(self, run_id):
        """Delete a run, finished or live. Busy if a process is training it."""
        finished, live, doomed = self.places(run_id)
        with self.lock(run_id):
            discard(doomed)
            discard(finished, doomed)
            discard(live, doomed)

    def set_aside(self, folder):
        """Move a damaged run out of the way, where a person can look at it. Returns where."""
        aside, number = self.inside("aside"), 1
        aside.mkdir(exist_ok=True)
        while (target := aside / f"{folder.name}-{number}").exists():
            number += 1
        shutil.move(folder, target)
        return target

    def export(self, run_id, root, light=False, weights=False):
        """Copy a finished run into another store, as for results/. Returns the copy.

        light: predictions instead of all probabilities; weights: with them. A copy that is there
        stays, unless it has less than that.
        """
        run, target = self.load(run_id), Store(root)
        folder, building = target.folder(run_id), target.inside(f"tmp-{run_id}-copy")
        target.root.mkdir(parents=True, exist_ok=True)
        with SoftFileLock(target.inside(f"tmp-{run_id}.held"), timeout=60):  # leaves no file there
            wanted = contents(run, light and not (folder / WHOLE).exists(), weights)
            if not all((folder / name).exists() for name in {WHOLE, WEIGHTS} & wanted.keys()):
                discard(folder, target.inside(f"tmp-{run_id}"))
            if not folder.exists():
                work.commit(wanted, building, folder)
        return target.load(run_id)


def contents(run, light, weights):
    """{file name: bytes} of a copy. FileNotFoundError if weights are wanted that it lacks."""
    names = [RECORD, METRICS]
    names += [WEIGHTS] if weights and run.weights() else []
    if run.light or not light:
        names.append(LIGHT if run.light else WHOLE)
    copied = {name: (run.folder / name).read_bytes() for name in names}
    if light and not run.light:
        kept = {name: run.tested[name] for name in OUTPUTS[0]}
        small = run.probabilities.shape[1] <= 256
        for name in ("predicted", "labels"):
            kept[name] = kept[name].byte() if small else kept[name].int()
        copied[LIGHT] = work.packed(kept, {"spec": run.spec.canonical()})
    return copied


def mend(folder):
    return f"restore {folder}, or `banlib runs rm {folder.name}` and train again"


def record_problem(folder):
    """A sentence if run.json is no record, or if its spec does not hash to the folder's name."""
    try:
        spec = Run.at(folder).spec
    except STRANGE as error:
        return f"{RECORD} holds no valid record: {plain(error)}"
    if spec.run_id == folder.name:
        return None
    sentence = f"the folder says {folder.name}, the spec hashes to {spec.run_id}"
    with contextlib.suppress(*STRANGE):  # a copy of the spec travels with the test outputs
        outputs = folder / (WHOLE if (folder / WHOLE).exists() else LIGHT)
        text = work.header(outputs.read_bytes())["__metadata__"]["spec"]
        before, now = flat(RunSpec.model_validate_json(text)), flat(spec)
        fields = [name for name in before if before[name] != now[name]]
        sentence += f", field {', '.join(fields)} differs" if fields else ""
    return sentence


def flat(spec):
    """Its fields, and those of its recipe, by name."""
    recipe = {f"recipe.{name}": value for name, value in spec.recipe}
    return {name: value for name, value in spec if name != "recipe"} | recipe
