"""Which run is next: each as soon as its own teacher is finished, the costliest chain first.

Workers attend to a plan until all is trained; `simulate` replays that without training.
"""

import heapq
import math
import sys
import threading
import time
from functools import cache, partial

from tqdm import tqdm

from banlib.models import forward_macs
from banlib.runs import fit
from banlib.runs.fit import OutOfTime

PATIENCE = 60  # seconds that a worker has to save its work when it is stopped
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
TOLD = (RuntimeError, ValueError, LookupError, OSError)  # errors that are sentences

macs = cache(forward_macs)


class Lost(RuntimeError):
    """A worker was lost with its run, which another may take."""


class Plan:
    """Runs to train, {run id: spec} in order; each can be taken once its teacher is finished.

    by_cost: the costliest chain of students first, so that no worker is left alone with it at the
    end; else in order.
    """

    def __init__(self, missing, until=math.inf, by_cost=False):
        self.missing, self.until, self.by_cost = missing, until, by_cost
        self.waiting, self.running, self.done = dict(missing), set(), set()
        self.failures, self.blocked = {}, {}  # run id -> sentence, run id -> the failure's
        self.changed = threading.Condition()
        self.cost = {key: spec.recipe.epochs * macs(spec.network) for key, spec in missing.items()}
        self.chain = dict(self.cost)
        for key, spec in reversed(missing.items()):
            if spec.teacher in missing:
                longest = self.cost[spec.teacher] + self.chain[key]
                self.chain[spec.teacher] = max(self.chain[spec.teacher], longest)

    def take(self, last=None):
        """The next run, when there is one; None when there is none to come. last: the taker's."""
        with self.changed:
            while self.lasts():
                if spec := self.ready(last):
                    return spec
                self.changed.wait(1)

    def lasts(self):
        """Whether there is time, and a run to take or that may come back."""
        return (self.waiting or self.running) and time.monotonic() < self.until

    def ready(self, last=None):
        """As `take`, without waiting for a teacher."""
        unfinished = self.waiting.keys() | self.running
        ready = [spec for spec in self.waiting.values() if spec.teacher not in unfinished]
        if ready:
            spec = max(ready, key=partial(self.rank, last)) if self.by_cost else ready[0]
            self.running.add(spec.run_id)
            return self.waiting.pop(spec.run_id)

    def rank(self, last, spec):
        """By cost; then those whose teacher's answers are at hand."""
        return self.chain[spec.run_id], last is not None and spec.teacher == last.teacher

    def settle(self, spec, failure=None):
        """What became of a run: None, a sentence, OutOfTime or Lost."""
        with self.changed:
            self.running.discard(spec.run_id)
            if isinstance(failure, OutOfTime):
                self.until = -math.inf
            elif failure is None:
                self.done.add(spec.run_id)
            elif isinstance(failure, Lost):
                self.waiting[spec.run_id] = spec
            else:
                self.failures[spec.run_id] = failure
                for key, student in list(self.waiting.items()):
                    if student.teacher in self.failures | self.blocked:
                        self.blocked[key] = self.blocked.get(student.teacher, student.teacher)
                        del self.waiting[key]
            self.changed.notify_all()

    def told(self):
        """A sentence for each failure. Raises OutOfTime if runs are left."""
        sentences = []
        for key, spec in self.missing.items():
            names = [self.missing[one].name for one, by in self.blocked.items() if by == key]
            blocked = f" (blocked: {', '.join(names)})" if names else ""
            if key in self.failures:
                sentences.append(f"seed {spec.seed}: {self.failures[key]}{blocked}")
        if len(self.done) + len(self.failures) + len(self.blocked) < len(self.missing):
            trained = f"{len(self.done)} of {len(self.missing)} networks were trained"
            kept = "finished epochs of the others are kept, start it again to go on"
            raise OutOfTime("; ".join([f"time is up: {trained}, {kept}", *sentences]))
        return sentences


def attend(plan, train, ready=lambda: True):
    """Train what a plan has for this engine, or for one of its workers while that is ready."""
    spec = None
    while ready() and (spec := plan.take(spec)):
        try:
            failure = train(spec)
        except Exception as error:  # else all who wait for this run would wait for ever
            failure = f"{spec.network} {spec.name} (run {spec.run_id}): {sentence(error)}"
        plan.settle(spec, failure)


def simulate(specs, seconds_of, workers):
    """How a plan would go, without training: [(workers, makespan in s, idle share of their time)].

    specs: the runs to train, a teacher before its students; seconds_of: spec -> seconds of its
    training; workers: counts.
    """
    rows, work = [], sum(map(seconds_of, specs))
    for count in workers:
        plan = Plan({spec.run_id: spec for spec in specs}, by_cost=True)
        now, running = 0.0, []
        while plan.waiting or running:
            while len(running) < count and (spec := plan.ready()):
                heapq.heappush(running, (now + seconds_of(spec), spec.run_id))
            now, run_id = heapq.heappop(running)
            plan.settle(plan.missing[run_id])
        rows.append((count, now, max(0.0, 1 - work / (count * now)) if now else 0.0))
    return rows


def outcome(spec, store, device, **options):
    """None if the run is trained; else why not: a sentence, or OutOfTime."""
    try:
        fit.fit(spec, store, device, **options)
    except OutOfTime as late:
        return late
    except Exception as error:  # one of many: the others go on
        return sentence(error)


def sentence(error):
    return str(error) if isinstance(error, TOLD) else f"{type(error).__name__}: {error}"


def side_by_side(plan, workers, progress, where):
    """Each worker attends to the plan. However this ends, no process is left."""
    work = [(plan, partial(each.train, plan.until), each.ready) for each in workers]
    threads = [threading.Thread(target=attend, args=each, daemon=True) for each in work]
    shown = {"disable": not progress, "file": sys.stderr, "bar_format": BAR}
    shown |= {"mininterval": 0.5 if sys.stderr.isatty() else 10, "total": sum(plan.cost.values())}
    try:
        for thread in threads:
            thread.start()
        with tqdm(**shown) as bar:
            show(plan, bar, where)
            bar.refresh()
            while any(thread.is_alive() for thread in threads):
                show(plan, bar, where)
                for thread in threads:
                    thread.join(0.2)
            show(plan, bar, where)
            bar.refresh()
    except BaseException:
        plan.until = -math.inf
        for worker in workers:
            worker.stop()
        for thread in threads:
            if thread.ident:
                thread.join(PATIENCE)
        raise
    finally:
        for worker in workers:
            worker.close()


def show(plan, bar, where):
    bar.set_description_str(f"{len(plan.done)} of {len(plan.missing)} runs, {where}", refresh=False)
    settled = [*plan.done, *plan.failures, *plan.blocked]
    bar.update(sum(plan.cost[key] for key in settled) - bar.n)
