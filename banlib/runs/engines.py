"""Engines that train the missing runs of a plan: in this process, or in processes side by side.

A `planner.Plan` hands out runs, each as soon as its teacher is finished; an engine takes them. A
worker, `python -m banlib.runs.engines`, reads runs from standard input, a line of JSON each, and
answers in lines; at the end of its input, as when its parent died, it leaves.
"""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings

import torch

from banlib.runs import fit, machine
from banlib.runs.datasets import facts
from banlib.runs.fit import OutOfTime
from banlib.runs.planner import PATIENCE, Plan, attend, outcome, side_by_side, simulate
from banlib.runs.recipe import BadInput, RunSpec, named
from banlib.runs.store import Store

__all__ = ["simulate", "train_missing"]

ENGINES = ("auto", "here", "processes", "ray")
BRIEF = 50_000  # images to train on in all: for fewer, starting workers takes longer than it saves


def train_missing(
    specs,
    store,
    device="auto",
    jobs=None,
    threads=None,
    progress=True,
    until=math.inf,
    engine="auto",
    address=None,
    by_cost=True,
    **how,
):
    """Train what the store lacks of `specs`, in which a teacher stands before its students.

    jobs: how many side by side, see `default_jobs`; until: a time.monotonic() at which OutOfTime is
    raised; address: of a Ray cluster; by_cost: see `Plan`; how: see `fit.fit`. Returns a sentence
    for each failure, which names the runs that it blocks; all others are trained.
    """
    named("engine", engine, ENGINES)
    if address and engine not in ("auto", "ray"):
        raise BadInput(f"an address is of a Ray cluster; engine {engine!r} has none")
    if engine == "here" and (jobs or 1) > 1:
        raise BadInput(f"engine 'here' trains one run after another; jobs must be 1, got {jobs}")
    missing = {spec.run_id: spec for spec in specs if store.status(spec.run_id) != "finished"}
    if not missing:
        return []
    if engine == "ray" or address:
        from banlib.runs import cluster

        return cluster.train(missing, store, device, jobs, threads, progress, until, address, how)
    chosen = machine.choose_device(device)  # refused here, not in each run
    work = sum(spec.recipe.epochs * facts(spec.dataset).images for spec in missing.values())
    jobs = jobs or (default_jobs(threads, device) if work > BRIEF else 1)
    jobs = max(1, min(jobs, len(missing)))
    here = engine == "here" or (engine == "auto" and jobs == 1)
    plan = Plan(missing, until, by_cost=by_cost and not here)
    if here:
        options = {"threads": threads, "progress": progress, "until": until} | how
        attend(plan, lambda spec: outcome(spec, store, chosen, **options))
        return plan.told()
    if chosen.type == "cpu":
        threads = threads or max(1, machine.cores() // jobs)
    workers = [Worker(store, *place(n, device, chosen, threads), threads, how) for n in range(jobs)]
    side_by_side(plan, workers, progress, f"{jobs} workers on {chosen.type}")
    return plan.told()


def default_jobs(threads, device):
    """One for each core where runs use one thread on the CPU, one for each GPU; else one."""
    if machine.choose_device(device).type == "cpu":
        return machine.cores() if threads == 1 else 1
    return len(usable()) if str(device) in ("auto", "cuda") else 1


def usable():
    """The numbers of the CUDA devices that compute."""
    return [n for n in range(torch.cuda.device_count()) if not machine.refusal(f"cuda:{n}")]


def place(number, device, chosen, threads):
    """(environment, device) of a worker: with a GPU of its own where any would do."""
    environment = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    if chosen.type == "cpu" or str(device) not in ("auto", "cuda"):
        return environment, str(chosen)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [name for name in names if name] or range(torch.cuda.device_count())
    names = [names[each] for each in usable()]
    return environment | {"CUDA_VISIBLE_DEVICES": str(names[number % len(names)])}, "cuda:0"


class Worker:
    """A process that trains one run after another; started, and started anew, when there is one."""

    command = (sys.executable, "-m", "banlib.runs.engines")

    def __init__(self, store, environment, device, threads, how):
        self.environment, self.process, self.stopped = environment, None, False
        self.order = {"root": str(store.root), "device": device, "threads": threads, "how": how}

    def ready(self):
        return True

    def train(self, until, spec):
        """As `outcome`."""
        what = f"{spec.network} {spec.name} (run {spec.run_id})"
        seconds = None if until == math.inf else until - time.monotonic()
        order = self.order | {"spec": spec.model_dump(mode="json"), "seconds": seconds}
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                answer = json.loads(line)
                if "warning" not in answer:
                    return OutOfTime(answer["failure"]) if answer["late"] else answer["failure"]
                warnings.warn(answer["warning"], stacklevel=2)
        except BrokenPipeError:
            pass
        except OSError as error:
            return f"{what}: no process could be started for it: {error}"
        code = self.process.wait()
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        why = "memory may have run out, try fewer jobs" if code == -9 else "see above"
        return f"{what}: its process {ended} ({why}); start again to go on"

    def start(self):
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
            start_new_session=True,  # the terminal's signals are for the parent
        )
        if self.stopped:
            self.process.terminate()

    def stop(self):
        self.stopped = True
        if self.process:
            self.process.terminate()

    def close(self):
        if self.process:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            try:
                self.process.wait(PATIENCE)
            finally:
                self.process.kill()
                self.process.stdout.close()


def serve():
    """A worker's life."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what prints does not disturb the answers
    orders = queue.SimpleQueue()

    def read():
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(0)

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)
        fit.last_moment = -math.inf
        while frame := frame.f_back:  # an import may catch what is raised in it
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                os._exit(OutOfTime.exit_code)
        raise KeyboardInterrupt

    def tell(**answer):
        answers.write(json.dumps(answer) + "\n")

    warnings.showwarning = lambda message, *_: tell(warning=str(message))
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=read, daemon=True).start()
    code = 1
    try:
        while fit.last_moment > 0:
            order = orders.get()
            until = math.inf if order["seconds"] is None else time.monotonic() + order["seconds"]
            options = {"threads": order["threads"], "progress": False, "until": until}
            run = RunSpec(**order["spec"]), Store(order["root"]), order["device"]
            failure = outcome(*run, **options, **order["how"])
            late = isinstance(failure, OutOfTime)
            tell(late=late, failure=str(failure) if late else failure)
    except KeyboardInterrupt:
        code = OutOfTime.exit_code
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
