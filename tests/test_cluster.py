"""Runs on a real Ray cluster: two nodes on this machine that share no store, and one of a command's own.

Ray's servers take seconds to start, so the two nodes are started once, and a lost node is the last thing tested on them.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest

from banlib.paper import tables
from banlib.runs import cluster, engines
from banlib.runs.planner import Lost
from banlib.runs.recipe import PROFILES, BadInput
from banlib.runs.store import Store
from children import outcome
from conftest import recipe, tiny_spec
from test_engines import LONG, lineages
from test_engines import wait_for as wait_for_seconds

wait_for = partial(wait_for_seconds, seconds=400)  # importing torch in several processes takes long on a busy machine
TOO_BUSY = re.compile("Ray does not start here|no Ray cluster answers at")
SECONDS = recipe(epochs=100, lr_milestones=(50,), test_every=50)  # long enough to be met in training


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """(a cluster of two nodes with a CPU each, their stores); its token and its own stores are in its environment."""
    homes = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    ours = {"RAY_AUTH_TOKEN": "of-these-tests" * 4, "OMP_NUM_THREADS": "1"}
    ours["RAY_worker_niceness"] = "0"  # with Ray's 15 a worker gets next to nothing beside other tests
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (cluster.SAFE | cluster.LOOPBACK | ours).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        started = patiently(Cluster)
        for home in homes:
            few = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # processes
            few["env_vars"] = {"BANLIB_HOME": str(home)}
            patiently(lambda few=few: started.add_node(num_cpus=1, **few))
        before = set(psutil.Process().children(recursive=True))
        yield started, [Store(home / "runs") for home in homes]
        started.shutdown()
        wait_for(lambda: not any(alive(process.pid) for process in before))


def patiently(start):
    """What starts a part of Ray, which gives its servers fifteen seconds: too few on a very busy machine."""
    before = psutil.Process().children(recursive=True)
    for _ in range(6):
        with contextlib.suppress(Exception):
            return start()
        time.sleep(10)
        for left in set(psutil.Process().children(recursive=True)) - set(before):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    pytest.skip("the machine is too busy for Ray to start")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A store that was filled in this process, and its specs: the digits' table 1, a seed, an epoch of each run."""
    digits, short = PROFILES["digits"], {"epochs": 1, "lr_milestones": (), "test_every": 1}
    profile = digits._replace(recipe=digits.recipe.model_copy(update=short))
    store, specs = Store(tmp_path_factory.mktemp("here")), tables.specs_of(tables.plan(1, profile, seeds=(0,)))
    assert len(specs) == 15
    assert engines.train_missing(specs, store, "cpu", 1, 1, progress=False, engine="here") == []
    return store, specs


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def answers(processes, ask):
    """What ask says of each process that has not ended meanwhile."""
    found = []
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(ask(each))
    return found


def trainers(*stores):
    """{run id: process} of the runs that are in training in some stores."""
    found = {}
    for path in (path for store in stores for path in store.root.glob("locks/*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text())["process"]
    return {run_id: pid for run_id, pid in found.items() if alive(pid)}


DRIVER = """
import json, signal, sys
from banlib.cli import stop
from banlib.runs.engines import train_missing
from banlib.runs.recipe import RunSpec
from banlib.runs.store import Store
signal.signal(signal.SIGTERM, stop)
specs = [RunSpec(**spec) for spec in json.loads(sys.stdin.readline())]
try:
    print(train_missing(specs, Store(), "cpu", 2, 1, engine="ray", address=json.loads(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.fixture
def driver(tmp_path):
    """Starts a process that trains specs on the cluster at an address; it is killed at the end."""
    started = []

    def start(specs, address=None):
        process = subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(address)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        started.append(process)
        process.stdin.write(json.dumps([spec.model_dump(mode="json") for spec in specs]) + "\n")
        process.stdin.flush()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def training(process, specs, *stores):
    """The driver, once these runs are in training; RuntimeError if Ray was too slow for it."""
    ids = {spec.run_id for spec in specs}
    wait_for(lambda: process.poll() is not None or ids <= trainers(*stores).keys())
    if process.poll() is None:
        return process
    said = process.stderr.read()
    raise RuntimeError(said) if TOO_BUSY.search(said) else pytest.fail(said)


def on(nodes, specs, store, **how):
    address = nodes[0].address
    return engines.train_missing(specs, store, "cpu", threads=1, progress=False, engine="ray", address=address, **how)


def test_two_nodes_give_the_ids_and_the_bits_of_one_process(nodes, here, store):
    """Each in a store of its own; what comes back is whole, and a teacher that is here already goes where it is needed.

    What diverges is not tried again, and blocks its students alone.
    """
    first, *others = here[1]
    here[0].export(first.run_id, store.root, weights=True)
    wild = lineages(recipe(epochs=2, lr=1e8, lr_milestones=()), (8,))
    [sentence] = on(nodes, [*here[1], *wild], store)
    assert f"(run {wild[0].run_id}) diverged in epoch 1" in sentence and sentence.endswith("(blocked: BAN-1)")
    for spec in here[1]:
        assert outcome(store.load(spec.run_id)) == outcome(here[0].load(spec.run_id))
    assert {run_id for each in nodes[1] for run_id in each.ids()} >= {spec.run_id for spec in others}


def test_a_driver_that_is_killed_finds_what_is_finished(nodes, store, driver):
    """Also what had not come back yet: it lies in the store of a node."""
    first, second = lineages(SECONDS, (9,))
    process = patiently(lambda: training(driver([first, second], nodes[0].address), [second], *nodes[1]))
    pid = trainers(*nodes[1])[second.run_id]
    process.kill()
    wait_for(lambda: not alive(pid))
    [before] = [each.load(first.run_id) for each in nodes[1] if each.status(first.run_id) == "finished"]
    store.remove(first.run_id)  # as if it had died before its files came
    assert on(nodes, [first, second], store) == []
    assert store.load(first.run_id).metrics.equals(before.metrics), "trained again"
    assert store.status(second.run_id) == "finished"


def test_a_driver_that_is_stopped_lets_its_workers_save(nodes, driver):
    """A worker that was killed would leave the note of its lock."""
    [spec] = lineages(LONG, (10,), gens=0)
    process = patiently(lambda: training(driver([spec], nodes[0].address), [spec], *nodes[1]))
    pid = trainers(*nodes[1])[spec.run_id]
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    wait_for(lambda: not alive(pid))
    assert not [path for each in nodes[1] for path in each.root.glob(f"locks/{spec.run_id}.json")]


def test_killed_workers_and_a_lost_node_lose_no_run(nodes, store):
    started, stores = nodes
    specs, killed = lineages(SECONDS, (11, 12, 13, 14), gens=0), []

    def harm():
        killed.append(wait_for(lambda: next(iter(trainers(stores[0]).values()), None)))
        os.kill(killed[0], signal.SIGKILL)
        wait_for(lambda: trainers(stores[1]))
        started.remove_node(next(iter(started.worker_nodes)))

    thread = threading.Thread(target=harm)
    thread.start()
    assert on(nodes, specs, store) == []
    thread.join(300)
    assert killed and len(started.list_all_nodes()) == 1 and not alive(killed[0])
    assert {store.status(spec.run_id) for spec in specs} == {"finished"}


def test_a_cluster_of_its_own_listens_to_this_machine_alone_and_leaves_with_the_command(driver, store, monkeypatch):
    """Even if it is killed."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    specs = lineages(LONG, gens=0)
    process = patiently(lambda: training(driver(specs), specs, store))
    left = psutil.Process(process.pid).children(recursive=True)
    ports = sum(answers(left, lambda one: one.net_connections("tcp")), [])
    servers = [each for each in ports if each.status == psutil.CONN_LISTEN]
    assert len(servers) > 3 and {each.laddr.ip.removeprefix("::ffff:") for each in servers} == {"127.0.0.1"}
    boards = [words for words in answers(left, psutil.Process.cmdline) if "dashboard.py" in " ".join(words)]
    assert all("--disable-frontend" in words for words in boards), "a dashboard is served"
    modes = answers(left, lambda one: one.name() == "raylet" and one.environ()["RAY_AUTH_MODE"])
    assert set(filter(None, modes)) == {"token"}
    process.kill()
    wait_for(lambda: not any(alive(one.pid) for one in left))


# What needs no cluster


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


def slot(store, error):
    """A slot of a stand-in for Ray, on which each run ends with this error; and what it killed."""

    def get(reference):
        raise error

    killed, names = [], SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    ray = SimpleNamespace(exceptions=names, get=get, wait=lambda *args, **more: None, kill=killed.append)
    made = cluster.Slot(cluster.Session(ray, store, str(store.root)))
    made.actor = SimpleNamespace(train=SimpleNamespace(remote=lambda *order: json.dumps(order)))
    return made, killed


def test_a_run_is_tried_again_a_few_times(store):
    """What travels can be written as JSON, as the stand-in does."""
    lost, killed = slot(store, RayError("The actor is dead.\nits node was preempted"))
    actor, told = lost.actor, []
    for _ in range(cluster.RETRIES + 1):
        lost.actor = actor
        told.append(lost.train(math.inf, tiny_spec()))
    assert [type(each) for each in told] == [Lost] * cluster.RETRIES + [str] and len(killed) == len(told)
    what = f"DenseNetBC-10-4 Teacher (run {tiny_spec().run_id})"
    assert told[-1] == f"{what}: its worker was lost 4 times (its node was preempted); start again to go on"


def test_an_error_of_the_run_itself_is_not_tried_again(store):
    broken, killed = slot(store, RayTaskError("Traceback\nOSError: no space left on device"))
    told = broken.train(math.inf, tiny_spec())
    assert told.endswith(": OSError: no space left on device") and killed == [] and broken.actor


def test_without_ray_it_is_said_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        BadInput, match=r"^the engine ray needs Ray, which is not installed: `pip install '.\[ray\]'` in the checkout$"
    ):
        engines.train_missing([tiny_spec()], store, engine="ray")
    assert not store.root.exists()


def test_no_cluster_at_an_address_is_said(store):
    with pytest.raises(RuntimeError, match="^no Ray cluster answers at 127.0.0.1:1: "):
        engines.train_missing([tiny_spec()], store, engine="ray", address="127.0.0.1:1")


def node(cpus, gpus=0):
    return {"Resources": {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})}


@pytest.mark.parametrize("nodes, asked, place", [
    ([node(8, 4), node(8, 4)], ("auto", None, None), ("cuda", 8, {"num_gpus": 1, "num_cpus": 1})),
    ([node(8, 4), node(8)], ("cpu", None, 1), ("cpu", 16, {"num_cpus": 1})),
    ([node(8), node(4)], ("auto", None, None), ("cpu", 3, {"num_cpus": 4})),
    ([node(8), node(8)], ("auto", 8, None), ("cpu", 8, {"num_cpus": 2})),
])  # fmt: skip
def test_a_run_has_a_gpu_or_the_cores_it_is_told(nodes, asked, place):
    assert cluster.places(nodes, *asked) == place
    with pytest.raises(BadInput, match="device must be auto, cpu or cuda, got 'cuda:1'"):
        cluster.places(nodes, "cuda:1", None, None)


def test_what_arrives_damaged_is_not_committed(store, tmp_path):
    """A flipped bit, and a run under another's id."""
    sender, specs = Store(tmp_path), lineages(seeds=(0,))
    assert engines.train_missing(specs, sender, "cpu", 1, 1, progress=False) == []
    first, second = (spec.run_id for spec in specs)
    contents = cluster.files(sender, first)
    weights = bytearray(contents["weights.safetensors"])
    weights[1000] ^= 1
    for run_id, sent in ((first, contents | {"weights.safetensors": bytes(weights)}), (second, contents)):
        with pytest.raises(RuntimeError, match=f"run {run_id}: "):
            cluster.receive(store, run_id, sent)
    assert store.ids() == []
    cluster.receive(store, first, contents)
    assert outcome(store.load(first)) == outcome(sender.load(first))
    (store.folder(first) / "metrics.jsonl").write_text("")
    cluster.receive(store, first, contents)
    assert store.status(first) == "finished" and (store.root / "aside" / f"{first}-1").exists(), "a damaged one made way"
