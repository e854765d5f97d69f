"""Engines: which run is next, and real processes side by side, which are killed, stopped and orphaned."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from banlib.runs import engines, machine
from banlib.runs.engines import Plan, Worker, train_missing
from banlib.runs.fit import OutOfTime
from banlib.runs.planner import Lost, side_by_side
from banlib.runs.recipe import BadInput
from banlib.runs.store import Store
from children import outcome
from conftest import recipe, tiny_spec

SHORT = recipe(epochs=2, lr_milestones=(1,), test_every=2)
LONG = recipe(epochs=100_000, lr_milestones=(), test_every=100_000)


def lineages(own=SHORT, seeds=(0, 1), gens=1, network="DenseNetBC-10-4"):
    """Specs of lineages, teachers before students."""
    specs = []
    for seed in seeds:
        teacher = None
        for generation in range(gens + 1):
            specs.append(tiny_spec(generation, teacher, seed=seed, recipe=own, network=network))
            teacher = specs[-1].run_id
    return specs


def named(specs):
    return {spec.run_id: spec for spec in specs}


def label(spec):
    return spec.network, spec.name, spec.seed


# Plans


def test_here_a_plan_goes_in_order():
    specs = lineages(gens=2)
    plan, taken = Plan(named(specs)), []
    engines.attend(plan, lambda spec: taken.append(spec) or None)
    assert taken == specs and plan.told() == []


def test_a_run_can_be_taken_as_soon_as_its_own_teacher_is_finished():
    """Not when a whole generation is: the student of seed 0 goes while the teacher of seed 1 is still in training."""
    specs = lineages()
    plan = Plan(named(specs), by_cost=True)
    first, second = plan.take(), plan.take()
    assert (label(first), label(second)) == (label(specs[0]), label(specs[2]))
    plan.settle(first)
    assert plan.take() == specs[1]
    plan.settle(specs[1])
    plan.settle(second)
    assert plan.take() == specs[3] and plan.waiting == {}


def test_the_costliest_chain_is_first():
    small, chain, large = tiny_spec(), lineages(seeds=(1,), gens=3), tiny_spec(network="DenseNetBC-10-16", seed=2)
    plan = Plan(named([small, *chain, large]), by_cost=True)
    assert plan.cost[large.run_id] > sum(plan.cost[spec.run_id] for spec in chain)
    assert [label(plan.take())[0::2] for _ in range(3)] == [label(spec)[0::2] for spec in (large, chain[0], small)]


def test_of_equal_chains_that_is_first_whose_teachers_answers_are_at_hand():
    teachers = [tiny_spec(seed=seed) for seed in (0, 1)]
    students = [tiny_spec(1, teacher.run_id, seed=seed) for teacher in teachers for seed in (0, 1)]
    plan = Plan(named(students), by_cost=True)
    assert plan.take(students[3]) == students[2]


def test_what_fails_blocks_its_students_alone_and_is_told_with_them():
    specs = lineages(gens=2)
    plan, taken = Plan(named(specs)), []
    engines.attend(plan, lambda spec: taken.append(spec) or ("it is bad" if spec == specs[0] else None))
    assert taken == [specs[0], *specs[3:]]
    assert plan.told() == ["seed 0: it is bad (blocked: BAN-1, BAN-2)"]


def test_when_one_is_out_of_time_no_other_is_begun():
    specs = lineages(gens=2)
    plan, taken = Plan(named(specs)), []
    outcomes = [None, OutOfTime("has 1 of 2 epochs")]
    engines.attend(plan, lambda spec: taken.append(spec) or outcomes[len(taken) - 1])
    assert taken == specs[:2]
    with pytest.raises(OutOfTime, match="^time is up: 1 of 6 networks were trained, finished epochs of the others are kept"):
        plan.told()


def test_a_run_whose_worker_is_lost_is_for_another_to_take():
    plan = Plan(named(lineages(seeds=(0,))), by_cost=True)
    teacher = plan.take()
    plan.settle(teacher, Lost("its node went"))
    assert plan.failures == {} and plan.take() == teacher


def test_a_replay_says_how_long_it_takes_and_who_waits():
    """Two lineages of three generations, 1 s a run: six seconds of work in chains of three."""
    specs, asked = lineages(gens=2), []
    rows = engines.simulate(specs, lambda spec: asked.append(spec) or 1.0, [1, 2, 4])
    assert rows == [(1, 6.0, 0.0), (2, 3.0, 0.0), (4, 3.0, 0.5)] and set(asked) == set(specs)
    assert engines.simulate([], lambda spec: 1.0, [2]) == [(2, 0.0, 0.0)]


def test_a_replay_has_no_barrier_and_begins_with_the_longest_chain():
    """A chain of 3 x 4 s beside four runs of 3 s: 12 s on two workers, where waves would take 4 + 4 + 4 + 3."""
    chain, alone = lineages(seeds=(0,), gens=2), [tiny_spec(seed=seed, network="DenseNetBC-10-1") for seed in (1, 2, 3, 4)]
    [(_, makespan, idle)] = engines.simulate([*alone, *chain], lambda spec: 4.0 if spec in chain else 3.0, [2])
    assert (makespan, idle) == (12.0, 0.0)


def test_a_plan_whose_time_is_over_hands_out_nothing():
    plan = Plan(named(lineages()), until=time.monotonic() - 1)
    assert plan.take() is None


# Engines


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A store that was filled by the engine `here`, and the specs of two lineages."""
    store, specs = Store(tmp_path_factory.mktemp("here")), lineages()
    assert train_missing(specs, store, "cpu", 1, 1, progress=False) == []
    return store, specs


def test_two_processes_give_the_bits_of_one_and_say_how_far_they_are(here, tmp_path, capsys):
    store, specs = Store(tmp_path / "runs"), here[1]
    assert train_missing(specs, store, "cpu", 2, 1) == []
    for spec in specs:
        run = store.load(spec.run_id)
        assert outcome(run) == outcome(here[0].load(spec.run_id)) and run.environments[0]["threads"] == 1
    said = capsys.readouterr().err
    assert "0 of 4 runs, 2 workers on cpu" in said and "4 of 4 runs" in said
    assert train_missing(specs, store, "cpu", 2, 1) == [] and train_missing([], store) == []


def test_unknown_engines_and_devices_are_refused_before_anything_is_made(tmp_path):
    store = Store(tmp_path / "runs")
    with pytest.raises(BadInput, match="unknown engine 'process'; did you mean 'processes'"):
        train_missing(lineages(), store, "cpu", engine="process")
    with pytest.raises(BadInput, match="device 'cudaa' is not here"):
        train_missing(lineages(), store, "cudaa")
    assert not store.root.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_told_and_the_others_go_on(tmp_path, jobs):
    wild = recipe(epochs=2, lr=1e8, lr_milestones=())
    specs, store = [*lineages(wild, (0,)), *lineages(SHORT, (1,))], Store(tmp_path / "runs")
    [sentence] = train_missing(specs, store, "cpu", jobs, 1, progress=False)
    assert sentence.startswith(f"seed 0: DenseNetBC-10-4 Teacher (run {specs[0].run_id}) diverged in epoch ")
    assert sentence.endswith("(blocked: BAN-1)")
    assert [store.status(spec.run_id) for spec in specs] == ["diverged", "missing", "finished", "finished"]


def test_an_error_that_nobody_thought_of_does_not_end_the_plan(tmp_path, monkeypatch):
    def fit(spec, *args, **more):
        raise TypeError("unsupported operand")

    monkeypatch.setattr(engines.fit, "fit", fit)
    told = train_missing(lineages(), Store(tmp_path), "cpu", 1, 1, progress=False)
    assert told == [f"seed {seed}: TypeError: unsupported operand (blocked: BAN-1)" for seed in (0, 1)]


@pytest.mark.parametrize("jobs, seconds", [(1, 3), (2, 25)])  # a worker takes some seconds to start, on a busy machine many
def test_time_that_is_up_stops_what_is_in_training(tmp_path, jobs, seconds):
    """Though no run could end within the half hour; teachers are kept, students not begun."""
    specs, store = lineages(LONG), Store(tmp_path / "runs")
    until = time.monotonic() + seconds
    with pytest.raises(OutOfTime, match="^time is up: 0 of 4 networks were trained, finished epochs of the others are kept"):
        train_missing(specs, store, "cpu", jobs, 1, progress=False, until=until)
    assert time.monotonic() - until < 300
    assert [store.status(specs[n].run_id) for n in (1, 3)] == ["missing"] * 2
    status = [store.status(specs[n].run_id) for n in (0, 2)]
    assert status[0] == "live" and status[1] == ("missing" if jobs == 1 else "live")


def test_warnings_of_workers_are_those_of_the_parent(here, tmp_path):
    """As of a resume under other conditions."""
    from banlib.runs import fit

    spec, store = here[1][0], Store(tmp_path / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SAVE_SECONDS", 0)
        epoch = fit.Training.epoch
        patch.setattr(fit.Training, "epoch", lambda self, n, bar: epoch(self, n, bar) if n == 1 else 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            fit.fit(spec, store, "cpu", 2, False)
    with pytest.warns(UserWarning, match=f"run {spec.run_id} goes on under other conditions .threads 2 -> 1"):
        train_missing([spec], store, "cpu", 1, 1, False, engine="processes")


# Devices and threads of workers


def test_each_worker_has_a_gpu_of_its_own_where_any_would_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(machine, "refusal", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda = torch.device("cuda:0")

    def places(device, chosen=cuda):
        return [engines.place(number, device, chosen, None) for number in range(5)]

    for device in ("auto", "cuda"):
        assert engines.default_jobs(None, device) == 4
        assert places(device) == [({"CUDA_VISIBLE_DEVICES": str(number % 4)}, "cuda:0") for number in range(5)]
    assert places("cuda:2", torch.device("cuda:2")) == [({}, "cuda:2")] * 5 and engines.default_jobs(None, "cuda:2") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in places("auto")] == ["GPU-a", "GPU-b"] * 2 + ["GPU-a"]


def test_a_gpu_that_does_not_compute_gets_no_worker(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(machine, "refusal", lambda name: "no kernel image" if name == "cuda:0" else None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.warns(UserWarning, match="cuda:0 can't be used"):
        assert engines.default_jobs(None, "auto") == 2
    places = [engines.place(number, "auto", torch.device("cuda:1"), None)[0] for number in range(3)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["1", "2", "1"]


def test_what_an_engine_has_no_use_for_is_refused(store):
    specs = [tiny_spec()]
    with pytest.raises(BadInput, match="an address is of a Ray cluster; engine 'here' has none"):
        engines.train_missing(specs, store, "cpu", engine="here", address="127.0.0.1:1")
    with pytest.raises(BadInput, match="engine 'here' trains one run after another; jobs must be 1, got 2"):
        engines.train_missing(specs, store, "cpu", 2, engine="here")
    assert store.ids() == []


@pytest.mark.timeout(120)
def test_a_worker_that_fails_in_its_own_way_keeps_nobody_waiting():
    class Failing:
        ready, stop, close = (lambda self: True), (lambda self: None), (lambda self: None)

        def train(self, until, spec):
            if spec.generation == 0:
                raise OSError("no room for what came") if spec.seed else AttributeError("a bug")

    specs = lineages(seeds=(0, 1, 2))
    plan = Plan({spec.run_id: spec for spec in specs}, by_cost=True)
    side_by_side(plan, [Failing(), Failing()], False, "nowhere")
    told = plan.told()
    assert len(told) == 3 and "AttributeError: a bug (blocked: BAN-1" in told[0] and "no room for what came (blocked" in told[1]


def test_jobs_are_the_cores_where_runs_use_one_thread_on_the_cpu(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 6)
    assert (engines.default_jobs(1, "cpu"), engines.default_jobs(None, "cpu"), engines.default_jobs(2, "auto")) == (
        6,
        1,
        1,
    )
    assert engines.place(3, "cpu", torch.device("cpu"), 2) == ({"OMP_NUM_THREADS": "2"}, "cpu")


# Processes that are killed, stopped, orphaned

PLAN = """if True:
    import json, signal, sys, time
    sys.path.insert(0, {tests!r})
    from banlib.cli import stop
    from banlib.runs.engines import train_missing
    from banlib.runs.recipe import RunSpec
    from banlib.runs.store import Store
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup make test` would have ignored
    if {handled}:
        signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, stop)
    specs = [RunSpec(**spec) for spec in json.loads(sys.stdin.readline())]
    try:
        print(json.dumps(train_missing(specs, Store(), "cpu", 2, 1, **{how})), flush=True)
    except KeyboardInterrupt:
        sys.exit(75)
"""


@pytest.fixture
def parent(tmp_path):
    """Starts a process with a plan of two workers; what is left of it afterwards is killed."""
    started = []

    def start(specs, handled=True, prefix=(), **how):
        code = PLAN.format(tests=str(Path(__file__).parent), handled=handled, how=how)
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"BANLIB_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        process.stdin.write(json.dumps([spec.model_dump(mode="json") for spec in specs]) + "\n")
        process.stdin.flush()
        return process

    yield start
    for process in started:
        for pid in [*workers_of(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def workers_of(pid):
    """Process ids of the workers that a process started."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task").glob("*/children")
        found = {int(child) for task in children for child in task.read_text().split()}
        return sorted(child for child in found if b"banlib.runs.engines" in command(child))
    return []


def command(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def shared(pid):
    """Whether a process has anything in /dev/shm, which nobody would remove after a kill."""
    return "/dev/shm" in Path(f"/proc/{pid}/maps").read_text()


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} seconds in vain")


def in_training(store):
    """Ids of runs with a lock that is held."""
    return sorted(path.stem for path in store.root.glob("locks/*.json"))


def test_killed_workers_are_named_with_their_runs_and_new_ones_take_the_rest(parent, store):
    """Both of them, in their first runs."""
    longs, shorts = [lineages(LONG, (seed,)) for seed in (8, 9)], lineages(SHORT, (0, 1))
    process = parent([*longs[0], *longs[1], *shorts])
    for long, _ in longs:
        wait_for(lambda long=long: long.run_id in in_training(store))
        holder = json.loads((store.root / "locks" / f"{long.run_id}.json").read_text())["process"]
        assert holder in workers_of(process.pid)
        os.kill(holder, signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert json.loads(out) == [
        f"seed {seed}: DenseNetBC-10-4 Teacher (run {long.run_id}): its process was killed by signal 9 "
        "(memory may have run out, try fewer jobs); start again to go on (blocked: BAN-1)"
        for seed, (long, _) in zip((8, 9), longs, strict=True)
    ]
    assert {store.status(spec.run_id) for spec in shorts} == {"finished"} and process.returncode == 0
    assert "resource_tracker" not in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_of_a_dead_parent_leave(parent, store, number):
    specs = lineages(LONG)
    process = parent(specs)
    wait_for(lambda: len(in_training(store)) == 2)
    workers = workers_of(process.pid)
    assert len(workers) == 2 and not any(shared(pid) for pid in (*workers, process.pid))
    process.send_signal(number)
    process.wait()
    wait_for(lambda: not any(b"banlib" in command(pid) for pid in workers))
    for spec in (specs[0], specs[2]):
        with store.claim(spec):  # free at once
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_parent_saves_the_work_of_all(parent, store, number):
    specs = lineages(LONG)
    process = parent(specs)
    wait_for(lambda: len(in_training(store)) == 2)
    workers = workers_of(process.pid)
    time.sleep(3)  # some epochs
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75 and out == "" and not any(b"banlib" in command(pid) for pid in workers)
    assert "Traceback" not in err and "resource_tracker" not in err and "leaked" not in err
    for spec in (specs[0], specs[2]):
        point, *_ = sorted(store.folder(spec.run_id, "live").glob("resume-*"))[::-1]
        assert int(point.name.split("-")[1]) > 1


def test_a_stop_in_the_first_moments_leaves_nothing_running(parent):
    """While workers are starting, and import."""
    process = parent(lineages(LONG))
    workers = wait_for(lambda: workers_of(process.pid))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 75 and out == ""
    wait_for(lambda: not any(b"banlib" in command(pid) for pid in workers))


def test_too_little_address_space_is_told_and_nothing_hangs(parent, store):
    """As of `ulimit -v`: workers cannot even import torch."""
    limit = ["bash", "-c", 'ulimit -Sv 4000000; exec "$@"', "bash"]
    process = parent(lineages(SHORT, gens=0), prefix=limit)
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        pytest.fail("it hangs")
    if process.returncode == 0:
        assert all("process ended" in line or "memory" in line for line in json.loads(out))
    else:
        assert err


# What a worker is to its parent


def test_a_worker_that_prints_does_not_disturb_its_answers(tmp_path):
    """One that ends with its input, too."""
    code = ("import sys; from banlib.runs import engines\n"
            "engines.outcome = lambda spec, *args, **more: print('noise') or f'{spec.name} {more}'\nengines.serve()")  # fmt: skip
    order = {"spec": tiny_spec().model_dump(mode="json"), "root": str(tmp_path), "device": "cpu", "threads": 1,
             "seconds": None, "how": {"deterministic": True}}  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert answer["late"] is False and answer["failure"].startswith("Teacher ") and "'deterministic': True" in answer["failure"]
    process.stdin.close()
    assert process.wait(30) == 0 and process.stdout.read() == "" and "noise" in process.stderr.read()
    process.stdout.close(), process.stderr.close()


def test_a_worker_that_cannot_be_started_is_told(store, monkeypatch):
    def no_process(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    spec = tiny_spec()
    with warnings.catch_warnings(action="error"):
        said = Worker(store, {}, "cpu", 1, {}).train(math.inf, spec)
    assert said.startswith(f"DenseNetBC-10-4 Teacher (run {spec.run_id}): no process could be started for it: ")
