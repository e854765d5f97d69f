"""A run in progress: two rotating resume points, each with its digest in its name, and the commit.

No format we know notices a flipped bit by itself, so every file of a run carries a digest. Files
hold JSON and safetensors: opening them executes nothing.
"""

import contextlib
import hashlib
import json
import os
import re
import warnings

from banlib.runs import disk
from banlib.runs.disk import STRANGE, discard, dump, write_atomically

RESUME = re.compile(r"resume-(\d{6})-(\d+)-([0-9a-f]{64})\.safetensors")
LITTER = re.compile(r"\.(resume-.+|diverged\.json|metrics\.jsonl)\.tmp")


class RunDamaged(RuntimeError):
    """A run's files are not what was committed."""


class Work:
    """A run in progress, held under its lock."""

    def __init__(self, spec, live, finished, building):
        self.spec, self.live, self.finished, self.building = spec, live, finished, building
        self.newest = None  # name of the newest resume point known to be whole

    def damaged(self, what):
        return RunDamaged(f"{what}; `banlib runs rm {self.spec.run_id}` starts the run over")

    def diverged(self):
        """The sentence a diverged run left, or None."""
        path = self.live / "diverged.json"
        try:
            return str(read_json(path)["sentence"]) if path.exists() else None
        except STRANGE as error:
            raise self.damaged(f"{path} cannot be read ({error})") from None

    def give_up(self, sentence, **where):
        """Record that training diverged; such a run never becomes a teacher."""
        write_atomically(self.live / "diverged.json", dump({"sentence": sentence, **where}))

    def resume(self):
        """(rows of metrics, tensors, environments) of the newest resume point that is whole.

        A damaged one is reported in a sentence and the one before it is used. If all are damaged
        nothing is overwritten: RunDamaged, because going on without would be a silent restart.
        ([], None, []) where none was written.
        """
        points = resume_points(self.live)
        for path in points:
            if not (problem := point_problem(path)):
                self.newest = path.name
                return self.read(path)
            what = f"a resume point of run {self.spec.run_id} is damaged: {problem} ({path})"
            warnings.warn(f"{what}; trying the one before", stacklevel=2)
        if points or (self.live / "metrics.jsonl").exists():  # which is written after one
            raise self.damaged(f"no resume point of run {self.spec.run_id} is whole")
        return [], None, []

    def read(self, path):
        try:
            raw = path.read_bytes()
            state = json.loads(header(raw).get("__metadata__", {}).get("state", "{}"))
            if missing := {"spec", "rows", "environments"} - set(state):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if state["spec"] != self.spec.canonical():
                raise ValueError("it belongs to another spec")
            epoch = int(RESUME.fullmatch(path.name)[1])
            if [row["epoch"] for row in state["rows"]] != list(range(1, epoch + 1)):
                raise ValueError(f"it lacks the metrics of some of its {epoch} epochs")
            return state["rows"], unpacked(raw), state["environments"]
        except STRANGE as error:
            raise self.damaged(f"resume point {path} is refused: {error}") from None

    def save(self, epoch, tensors, rows, environments):
        """Write the resume point of a finished epoch and keep the whole one before it.

        rows: all metrics so far; they go to metrics.jsonl too, for others to watch.
        """
        state = {"spec": self.spec.canonical(), "rows": rows, "environments": environments}
        raw = packed(tensors, {"state": json.dumps(state, allow_nan=False)})
        digest = hashlib.sha256(raw).hexdigest()
        name = f"resume-{epoch:06d}-{len(raw)}-{digest}.safetensors"
        if (self.live / name).is_dir():  # not ours to delete
            (self.live / name).rename(self.live / f"{name}.folder")
        write_atomically(self.live / name, raw)
        for old in resume_points(self.live):
            if old.name not in (name, self.newest) and not old.is_dir():
                old.unlink()
        self.newest = name
        write_atomically(self.live / "metrics.jsonl", metrics_text(rows))

    def commit(self, results, rows, environments, weights, probabilities, labels):
        """Turn the work into a finished run, by one rename.

        weights: state dict; of the test images, probabilities: float16 [n, classes], labels: int64
        [n].
        """
        spec = self.spec.model_dump(mode="json")
        tested = {"probabilities": probabilities, "labels": labels}
        metadata = {"spec": self.spec.canonical()}
        contents = {
            "run.json": dump({"spec": spec, "results": results, "environments": environments}),
            "metrics.jsonl": metrics_text(rows),
            "weights.safetensors": packed(weights, metadata),
            "probabilities.safetensors": packed(tested, metadata),
        }
        commit(contents, self.building, self.finished)
        with contextlib.suppress(OSError):  # it is committed; who asks next tidies up
            discard(self.live, self.building)


def commit(contents, building, finished):
    """Write the files of a run into the folder `building`, the manifest last, and rename it.

    If another process has committed the run meanwhile, that one stays.
    """
    entries = {
        name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        for name, raw in contents.items()
    }
    needed = sum(map(len, contents.values()))
    discard(building)
    try:
        with disk.room(building.parent, needed):
            building.mkdir(parents=True)
        for name, raw in (contents | {"manifest.json": dump({"files": entries})}).items():
            write_atomically(building / name, raw, needed)
        os.rename(building, finished)
    except OSError:
        discard(building)
        if not finished.exists():
            raise
    disk.sync_folder(finished.parent)


def resume_points(live):
    """Paths of the resume points in a live run's folder, newest first."""
    return sorted((path for path in live.iterdir() if RESUME.fullmatch(path.name)), reverse=True)


def point_problem(path):
    """What is wrong with a resume point, or None."""
    _, size, digest = RESUME.fullmatch(path.name).groups()
    return disk.problem_of(path, int(size), digest)


def packed(tensors, metadata):
    """{name: tensor} and {name: text} as the bytes of a safetensors file."""
    from safetensors.torch import save  # imports torch, which listing runs can do without

    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def unpacked(raw):
    """The tensors of `packed`, from any bytes. ValueError if there are none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(raw)
    except (SafetensorError, *STRANGE) as error:
        raise ValueError(f"no tensors can be read ({error})") from None


def header(raw):
    """The JSON header of a safetensors file's bytes."""
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def read_json(path):
    return parsed(path.read_bytes())


def parsed(raw):
    """A JSON text, in which NaN and infinities, that JSON does not have, are a ValueError."""
    return json.loads(raw, parse_constant=refuse_nan)


def refuse_nan(text):
    raise ValueError(f"{text} is no number of JSON")


def read_metrics(path):
    """Rows of a metrics.jsonl. A torn last line (a crash while appending) is dropped, and said."""
    lines = path.read_bytes().split(b"\n")
    rows = {}
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                row = parsed(line)
                rows[row["epoch"]] = row  # the later of two rows for one epoch
        except STRANGE:
            if number < len(lines):
                raise RunDamaged(f"{path}: line {number} is no JSON of an epoch") from None
            warnings.warn(f"{path}: the torn last line was dropped", stacklevel=2)
    return list(rows.values())


def metrics_text(rows):
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
