"""Rounds in which variants take turns, kept on disk; what a turn took; where results are kept.

What else runs on a machine slows all variants of a round alike, so ratios within a round count.
"""

import contextlib
import json
import re
import statistics
import sys
import time
from pathlib import Path

import torch

from banlib.runs import disk

RESULTS = Path(__file__).parents[1] / "results/benchmarks"  # where chapter 6 reads them
LIMIT = 420  # seconds after which no round is started: a command ends within ten minutes


def tell(text):
    print(text, file=sys.stderr)


class Rounds:
    """The rounds of a measurement, on disk from the first: the same command goes on with them.

    case: a `case.Case`; rounds: how many there will be; say: a function that shows progress.
    """

    def __init__(self, kind, case, rounds, say=tell):
        key = {"kind": kind, **case.described(), "rounds": rounds}
        self.path = disk.home() / "benchmarks" / f"{name_of(kind, key)}.json"
        self.rounds, self.device, self.say, self.begun = (
            rounds,
            case.device,
            say,
            time.perf_counter(),
        )
        self.state = {"key": key, "seconds": {}, "peaks": {}}
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(self.path.read_bytes())
            if found["key"] == key:
                self.state = found
                say(f"going on after round {len(next(iter(found['seconds'].values())))}")
        self.seconds, self.peaks = self.state["seconds"], self.state["peaks"]

    def steps(self, wanted):
        """The steps of a turn: what an earlier call chose, else what is wanted now."""
        return self.state.setdefault("steps", wanted)

    def measure(self, turns):
        """turns: {name: (turn, images)}. A round runs each once; only the first may end late."""
        done, took = min((len(self.seconds.get(name, [])) for name in turns), default=0), 0
        while done < self.rounds and (not done or self.spent() + took < LIMIT):
            begun = time.perf_counter()
            measured = {name: timed(*turn, self.device) for name, turn in turns.items()}
            for name, (spent, peak) in measured.items():
                self.seconds.setdefault(name, []).append(spent)
                self.peaks.setdefault(name, []).append(peak)
            done, took = done + 1, time.perf_counter() - begun
            self.path.parent.mkdir(parents=True, exist_ok=True)
            disk.write_atomically(self.path, disk.dump(self.state))
            self.say(f"round {done} of {self.rounds} in {took:.0f} s")

    def spent(self):
        return time.perf_counter() - self.begun

    def forget(self):
        self.path.unlink(missing_ok=True)


def timed(turn, images, device):
    """(seconds of a turn of so many images, peak bytes in it).

    The peak is what CUDA allocated, or of the whole process on Linux; else 0.
    """
    cuda, status, peak = device.type == "cuda", Path("/proc/self/status"), 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    begun = time.perf_counter()
    turn(images)
    if cuda:
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - begun
    if cuda:
        peak = torch.cuda.max_memory_allocated(device)
    elif status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), flags=re.M)
        peak = 1024 * int(found[1]) if found else 0
    return spent, peak


def ratio(theirs, mine):
    """How many times theirs the seconds of mine go into, round by round: median and range."""
    each = sorted(a / b for a, b in zip(theirs, mine, strict=True))
    low, middle, high = (round(v, 3) for v in (each[0], statistics.median(each), each[-1]))
    return {"median": middle, "range": [low, high]}


def name_of(kind, described):
    """The name of a measurement's file: what was measured, where, and how."""
    threads = [f"{described['threads']}-threads"] if described["device"] == "cpu" else []
    words = [described["hardware"], *threads, described["numerics"], *described["accelerate"]]
    how = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return f"{kind}-{described['network']}-{described['batch']}-{how}"


def record(result, kind, folder=None):
    """Write a result to results/benchmarks/, where chapter 6 finds it. Returns the path."""
    path = (folder or RESULTS) / f"{name_of(kind, result)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(path, disk.dump(result))
    return path
