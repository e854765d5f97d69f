"""A plan on a Ray cluster: on one that is there, or on one of this machine's own.

What travels are run ids, specs and the files of finished runs, never live objects. Each slot is an
actor with a GPU, or CPU cores, of its own. Where the nodes don't share the store, a run is trained
in the node's own and its files come back to be checked and committed here, while a teacher's files
go where a student needs them; a slot prefers students of the teacher whose answers it remembers.
"""

import collections
import contextlib
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path

from banlib.runs import fit, machine
from banlib.runs.planner import PATIENCE, TOLD, Lost, Plan, outcome, side_by_side
from banlib.runs.recipe import BadInput, RunSpec
from banlib.runs.store import Store

RETRIES = 3  # of a run whose worker or node was lost, and of starting a worker
SAFE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
# What Ray does on macOS and Windows: every server of a local cluster listens on loopback alone.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
SMALL = 10**8  # bytes of the object store where no run's files travel


def train(missing, store, device, jobs, threads, progress, until, address, how):
    """Train {run id: spec} on the cluster at an address, or else on one that ends with it.

    Nodes see the store if there is no address, or if it is not the home's. Returns and raises as
    `engines.train_missing`; RuntimeError if no cluster answers, or no worker can be started.
    """
    root = str(store.root) if not address or store.root != Store().root else None
    with connection(address, jobs, threads) as ray:
        session = Session(ray, store, root)
        if root is None:
            session.collect(missing)
        missing = {key: spec for key, spec in missing.items() if store.status(key) != "finished"}
        kind, jobs, resources = places(session.nodes(), device, jobs, threads)
        session.plan = plan = Plan(missing, until, by_cost=True)
        options = {"device": kind, "threads": threads or resources["num_cpus"], **how}
        actor = ray.remote(max_concurrency=2, **resources)(Trainer)
        session.start = partial(actor.remote, root, options)
        slots = [Slot(session) for _ in range(max(1, min(jobs, len(missing))))]
        where = f"{len(slots)} workers on {kind} of {len(session.nodes())} nodes"
        side_by_side(plan, slots, progress, where)
        if plan.waiting and time.monotonic() < until:
            raise RuntimeError(f"no worker of the cluster could be started: {slots[0].problem}")
    return plan.told()


@contextlib.contextmanager
def connection(address, jobs=None, threads=None):
    """The module ray, connected; afterwards a local cluster is gone, as are all our processes."""
    os.environ.update({name: os.environ.get(name, value) for name, value in SAFE.items()})
    if not address:
        os.environ.update(LOOPBACK)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        remedy = "`pip install '.[ray]'` in the checkout"
        raise BadInput(f"the engine ray needs Ray, which is not installed: {remedy}") from None
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    cpus = max(machine.cores(), (jobs or 1) * (threads or 1))
    local = {"address": "local", "num_cpus": cpus, "object_store_memory": SMALL}
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts one of its own in its place
    try:
        if ":" in (address or ""):  # where nobody listens Ray would try for minutes
            socket.create_connection(address.rsplit(":", 1), timeout=20).close()
        ray.init(**quiet, **({"address": address} if address else local))
    except Exception as error:  # a bare one, too, if the machine is too busy for Ray's patience
        first = str(error).strip().partition("\n")[0]
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start here"
        raise RuntimeError(f"{where}: {first}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def places(nodes, device, jobs, threads):
    """(kind of device, how many runs side by side, what each needs) of a cluster."""
    each = [node["Resources"] for node in nodes]
    gpus, cpus = (int(sum(one.get(kind, 0) for one in each)) for kind in ("GPU", "CPU"))
    if str(device) not in ("auto", "cpu", "cuda") or (str(device) == "cuda" and not gpus):
        what = f"the cluster has {gpus} GPUs, each for one run"
        raise BadInput(f"{what}: device must be auto, cpu or cuda, got {str(device)!r}")
    if gpus and str(device) != "cpu":
        return "cuda", jobs or gpus, {"num_gpus": 1, "num_cpus": 1}
    if threads is None:  # a node's cores for each run, or a part of them
        least = min((int(one["CPU"]) for one in each if one.get("CPU")), default=1)
        threads = max(1, min(least, cpus // (jobs or 1)))
    return "cpu", jobs or max(1, cpus // threads), {"num_cpus": threads}


class Session:
    """A connection to a cluster; root: of the store that all nodes see, None if there is none."""

    def __init__(self, ray, store, root):
        self.ray, self.store, self.root = ray, store, root
        self.lost, self.references = collections.Counter(), {}

    def nodes(self):
        return [node for node in self.ray.nodes() if node["Alive"]]

    def collect(self, ids):
        """Commit here what nodes finished in stores of their own, for a driver that died, say.

        ids: the runs asked for. RuntimeError if a node cannot train: it may lack banlib.
        """
        ray, asked = self.ray, self.ray.remote(num_cpus=0, max_retries=0)(finished)
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        for node in self.nodes():
            there = affinity(node["NodeID"], soft=False)
            try:
                answers = asked.options(scheduling_strategy=there).remote(list(ids))
                for answer in answers:
                    receive(self.store, *ray.get(answer))
            except ray.exceptions.RayTaskError as error:
                address = node["NodeManagerAddress"]
                what = f"node {address} of the cluster cannot train"
                raise RuntimeError(f"{what}: {last_line(error)}") from None
            except ray.exceptions.RayError:  # it was lost just now
                continue

    def reference(self, teacher):
        """[reference to a teacher's files], which travel if a node lacks them; or None."""
        if teacher is None or self.root is not None:
            return None
        if teacher not in self.references:
            self.references[teacher] = self.ray.put(files(self.store, teacher))
        return [self.references[teacher]]


def finished(ids):
    """(run id, its files) of the runs that a node has finished in its own store."""
    store = Store()
    for run_id in ids:
        if store.status(run_id) == "finished":
            yield run_id, files(store, run_id)


def files(store, run_id):
    """{name: bytes} of a finished run, the manifest among them."""
    return {path.name: path.read_bytes() for path in store.load(run_id).folder.iterdir()}


def receive(store, run_id, contents):
    """Commit the files of a finished run, after every byte was checked. Raises RunDamaged.

    A damaged one that is in its place is set aside.
    """
    with tempfile.TemporaryDirectory() as arrivals:
        folder = Path(arrivals, run_id)
        folder.mkdir()
        for name, raw in contents.items():
            (folder / Path(name).name).write_bytes(raw)
        if store.status(run_id) == "damaged":
            store.set_aside(store.folder(run_id))
        Store(arrivals).export(run_id, store.root, weights=True)


class Trainer:
    """An actor: a process of the cluster that trains one run after another."""

    def __init__(self, root, options):
        self.store, self.options = Store(root), options

    def ready(self):
        pass

    def stop(self):
        """Beside `train`: save the work and end."""
        fit.last_moment = -math.inf

    def train(self, spec, seconds, teacher):
        """{"failure": None or a sentence, "late", "warnings"}; teacher: [reference to files]."""
        import ray

        spec, until = RunSpec(**spec), math.inf if seconds is None else time.monotonic() + seconds
        if teacher and self.store.status(spec.teacher) != "finished":
            receive(self.store, spec.teacher, ray.get(teacher[0]))
        with warnings.catch_warnings(record=True, action="always") as said:
            failure = outcome(spec, self.store, until=until, progress=False, **self.options)
        late = isinstance(failure, fit.OutOfTime)
        said = [str(each.message) for each in said if each.category is UserWarning]
        return {"failure": failure and str(failure), "late": late, "warnings": said}

    def files(self, run_id):
        return files(self.store, run_id)


def last_line(error):
    return str(error).strip().rpartition("\n")[2]


class Slot:
    """A place in the cluster for one run at a time: an actor, started anew when it is lost."""

    def __init__(self, session):
        self.session, self.actor, self.call, self.problem = session, None, None, ""

    def ready(self):
        """Wait for a place; False if nothing is left to do, or if no worker can be started."""
        ray, plan, failures = self.session.ray, self.session.plan, 0
        while self.actor is None and plan.lasts() and failures <= RETRIES:
            self.actor = self.session.start()
            try:
                placed = self.actor.ready.remote()
                while not ray.wait([placed], timeout=1)[0] and plan.lasts():
                    pass
                ray.get(placed, timeout=0)
            except ray.exceptions.RayError as error:
                failures, self.problem = failures + 1, last_line(error)
                self.close()
        return self.actor is not None

    def train(self, until, spec):
        """As `planner.outcome`; or `Lost`, a few times, if the worker or its node was."""
        ray, store, what = self.session.ray, self.session.store, f"{spec.network} {spec.name}"
        what += f" (run {spec.run_id})"
        seconds = None if until == math.inf else until - time.monotonic()
        try:
            order = spec.model_dump(mode="json"), seconds, self.session.reference(spec.teacher)
            self.call = self.actor.train.remote(*order)
            answer = ray.get(self.call)
            for each in answer["warnings"]:
                warnings.warn(each, stacklevel=2)
            if answer["failure"]:
                return fit.OutOfTime(answer["failure"]) if answer["late"] else answer["failure"]
            if store.status(spec.run_id) != "finished":
                receive(store, spec.run_id, ray.get(self.actor.files.remote(spec.run_id)))
        except ray.exceptions.RayTaskError as error:  # a full disk there, say
            return f"{what}: {last_line(error)}"
        except ray.exceptions.RayError as error:
            self.close()
            if self.session.root is None:  # it may have been finished when its worker was lost
                self.session.collect([spec.run_id])
            if store.status(spec.run_id) == "finished":
                return None
            self.session.lost[spec.run_id] += 1
            if self.session.lost[spec.run_id] <= RETRIES:
                return Lost(what)
            times = f"its worker was lost {RETRIES + 1} times"
            return f"{what}: {times} ({last_line(error)}); start again to go on"
        except TOLD as error:  # what came is damaged, or there is no room for it
            return f"{what}: {error}"

    def stop(self):
        if self.actor:
            self.actor.stop.remote()

    def close(self):
        if self.call:  # one that was stopped saves its work
            self.session.ray.wait([self.call], timeout=PATIENCE)
        if self.actor:
            self.session.ray.kill(self.actor)
        self.actor = None
