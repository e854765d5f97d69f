"""The benchmarks' promises but their speeds: both loops learn the same, take turns, go on, and name the machine."""

import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from banlib import models, teachers
from banlib.figures.speed import measurements
from banlib.loop import train_epoch
from banlib.objectives import objective_loss
from banlib.runs import datasets, machine
from banlib.runs.lineage import recorded
from banlib.runs.store import Store
from banlib.views import draw_epoch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
parts = ("case", "ceilings", "loop", "ours", "rounds", "scaling", "trial", "usual")
case, ceilings, loop, ours, rounds, scaling, trial, usual = map(importlib.import_module, parts)

TINY = "DenseNetBC-10-2"


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "ROUNDS", 2)
    monkeypatch.setattr(rounds, "LIMIT", 10)
    monkeypatch.setattr(rounds, "RESULTS", tmp_path / "results/benchmarks")


@pytest.fixture
def said():
    return []


def described(hardware):
    return {"network": TINY, "batch": 4, "hardware": hardware, "device": "cpu", "threads": 2, "accelerate": [],
            "numerics": "bf16, channels last"}  # fmt: skip


def case_of(hardware):
    return SimpleNamespace(name=TINY, batch=4, device=torch.device("cpu"), described=lambda: described(hardware))


def two_steps(monkeypatch):
    monkeypatch.setattr(loop, "MOST_STEPS", 2)


def test_the_usual_loop_learns_what_ours_learns():
    """The same weights, batches and teacher give the same loss and the same weights: both are right, or both wrong."""
    given = case.Case(TINY, "cpu", 8, steps=3, precision="fp32")
    order, views = draw_epoch(1, 24, given.images.count)
    loader = [(given.images.batch(i, v), given.labels[i]) for i, v in zip(order.split(8), views.split(8), strict=True)]
    teacher = models.build(TINY).eval()
    ended = []
    for who in ("usual", "ours"):
        student = given.network()
        optimizer = case.sgd(student)
        if who == "usual":
            loss = usual.usual_epoch(loader, student, optimizer, teacher, given.device)
        else:
            asked = teachers.online(teacher, torch.no_grad)
            loss, _ = train_epoch(student, optimizer, partial(objective_loss, "label+teacher"), given.images,
                                  given.labels, order, views, 8, asked)  # fmt: skip
        ended.append((loss, torch.cat([parameter.flatten() for parameter in student.parameters()])))
    assert ended[0][0] == pytest.approx(ended[1][0], rel=1e-5)
    assert torch.allclose(ended[0][1], ended[1][1], atol=1e-6)
    assert not torch.equal(ended[0][1], torch.cat([each.flatten() for each in given.network().parameters()]))


def test_the_usual_loops_images_are_crops_and_flips_of_the_datasets():
    """Every image that a worker gives is one of the 162 views that ours would draw."""
    given = case.Case(TINY, "cpu", 4, steps=1)
    seen = {}

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(100))

        def forward(self, images):
            seen["images"] = images
            return self.weight.expand(len(images), -1)

    given.network = Student
    usual.usual(given, taught=False)(4)
    views = torch.cat([given.images.batch(torch.full((162,), i), torch.arange(162)) for i in range(4)])
    for image in seen["images"]:
        assert (views - image).abs().amax((1, 2, 3)).min() < 1e-5


def test_what_is_reported_follows_from_the_seconds(monkeypatch, said):
    two_steps(monkeypatch)
    result = loop.loop(TINY, "cpu", 4, said.append)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    seconds = result["seconds"]
    assert {len(each) for each in seconds.values()} == {result["rounds"]} and result["rounds"] >= 1
    assert set(result["ratio_to_usual_loop"]) == {"plain", "distill_online", "distill_remembered"}
    for name, theirs in (
        ("plain", "usual"),
        ("distill_online", "usual_teacher"),
        ("distill_remembered", "usual_teacher"),
    ):
        each = sorted(a / b for a, b in zip(seconds[theirs], seconds[name], strict=True))
        middle = (each[(len(each) - 1) // 2] + each[len(each) // 2]) / 2
        assert result["ratio_to_usual_loop"][name] == pytest.approx(middle, abs=1e-3)
        assert result["ratio_range"][name] == pytest.approx([each[0], each[-1]], abs=1e-3)
    share = 162 * (1 - (161 / 162) ** 200) / 200  # of 200 epochs' draws, those not drawn before
    expected = [later + share * fill for later, fill in zip(seconds["distill_later"], seconds["fill"], strict=True)]
    assert seconds["distill_remembered"] == pytest.approx(expected)
    assert result["students"]["share_asked"] == pytest.approx(share)
    assert set(result["students"]) == {"first", "later", "share_asked"}
    assert set(result["distill_over_plain"]) == {"distill_online", "distill_remembered", "distill_later"}
    assert result["hardware"] and result["data"].startswith("synthetic") and result["images"] == 4 * result["steps"]
    assert all(value > 0 for value in result["ceilings"].values())


def test_variants_take_turns_and_a_stopped_measurement_goes_on(said):
    """Round by round; what was measured before it was stopped is kept, and forgotten once all is done."""
    order = []
    turns = {name: ((lambda images, name=name: order.append(name)), 4) for name in ("usual", "ours")}
    kept = rounds.Rounds("loop", case_of("a machine"), 4, said.append)
    assert kept.steps(3) == 3

    def until_the_third(images):
        if order.count("usual") == 2:
            raise KeyboardInterrupt
        order.append("usual")

    with pytest.raises(KeyboardInterrupt):
        kept.measure({"usual": (until_the_third, 4), "ours": turns["ours"]})
    assert order == ["usual", "ours"] * 2
    again = rounds.Rounds("loop", case_of("a machine"), 4, said.append)
    assert again.steps(7) == 3 and said[-1] == "going on after round 2"
    again.measure(turns)
    assert order == ["usual", "ours"] * 4 and [len(each) for each in again.seconds.values()] == [4, 4]
    again.forget()
    assert rounds.Rounds("loop", case_of("a machine"), 4, said.append).seconds == {}


def test_rounds_of_another_machine_are_not_gone_on_with(said):
    for hardware in ("one", "another"):
        kept = rounds.Rounds("loop", case_of(hardware), 1, said.append)
        assert kept.seconds == {}
        kept.measure({"usual": (lambda images: None, 4)})


def test_no_round_is_started_that_would_end_too_late(said, monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now.seconds)
    kept = rounds.Rounds("loop", case_of("a machine"), 5, said.append)

    def turn(images):
        now.seconds += 4

    kept.measure({"usual": (turn, 4)})  # ends after 4 and 8 s; a third would end after 12
    assert len(kept.seconds["usual"]) == 2


def test_scaling_follows_one_thing_at_a_time(said, monkeypatch):
    monkeypatch.setattr(scaling, "EPOCHS", 3)
    result = scaling.scaling("DenseNetBC-16-2", "cpu", 4, said.append)
    axes = {}
    for point in result["points"]:
        assert all(point[kind] > 0 for kind in ("plain", "later", "fill"))
        axes.setdefault(point["axis"], []).append(point["value"])
    assert axes == {"depth": [10, 16, 28, 40], "growth": [1, 2, 4], "batch": [1, 2, 4, 8], "images": [4, 8, 16, 32]}
    assert result["share_asked"]["200"] == pytest.approx(0.575, abs=1e-3)
    chain = result["chain"]
    assert (chain["epochs"], chain["views"], len(chain["students"]), len(chain["generations"])) == (3, 18, 3, 3)
    assert all(each > 0 for each in [chain["plain"], *chain["students"], *chain["generations"]])
    shown = [table.to_string() for table in scaling.tables(result)]
    assert "plain, ms/image" in shown[0] and "generations" in shown[1]


def test_of_a_teachers_students_the_first_asks_and_each_generation_does(monkeypatch):
    """18 views, 12 epochs of 8 images: the formula's share of the answers, to the chance of so few draws."""
    asked = []

    def fill(self, indices, views):
        asked.append(int((~self.known[indices, views]).sum()))
        self.known[indices, views] = True
        self.table.zero_()

    monkeypatch.setattr(teachers.Remembered, "fill", fill)
    few = case.Case(TINY, "cpu", 4, 2, recipe=case.RECIPE.model_copy(update={"pad": 1}))
    turns = ours.raising(few, 12, (1, 2, 3))
    counts = {}
    for name in (
        "chain/plain",
        "students/1",
        "students/2",
        "students/3",
        "generations/1",
        "generations/2",
        "students/1",
    ):
        asked.clear()
        turns[name](8 * 12)
        counts.setdefault(name, []).append(sum(asked))
    once = counts["students/1"][0]
    assert counts == {"chain/plain": [0], "students/1": [once] * 2, "students/2": [0], "students/3": [0],
                      "generations/1": [once], "generations/2": [once]}  # fmt: skip
    assert once / (8 * 12) == pytest.approx(teachers.share(12, 18), abs=0.1)


@pytest.mark.parametrize("how, numerics", [
    ({"precision": "fp32"}, "fp32"), ({"precision": "bf16", "accelerate": ["cuda-graph", "pad-channels"]}, "bf16"),
])  # fmt: skip
def test_our_loop_computes_as_it_was_asked_to(monkeypatch, said, how, numerics):
    two_steps(monkeypatch)
    result = loop.loop(TINY, "cpu", 4, said.append, **how)
    assert result["numerics"].startswith(numerics) and result["precision"] == numerics
    assert result["accelerate"] == how.get("accelerate", [])
    assert rounds.record(result, "loop").stem.endswith("-".join(["channels-last", *how.get("accelerate", [])]))


def command(*words):
    return CliRunner().invoke(loop.main, ["--network", TINY, "--batch", "4", "--device", "cpu", *words])


def test_the_command_prints_json_alone_and_keeps_it_when_asked(monkeypatch):
    two_steps(monkeypatch)
    told = command("--json", "--record")
    assert told.exit_code == 0 and "round 1 of 2" in told.stderr
    result = json.loads(told.stdout)
    assert set(result["ratio_to_usual_loop"]) == {"plain", "distill_online", "distill_remembered"}
    assert measurements("loop", rounds.RESULTS) == [result]
    monkeypatch.setattr(loop, "loop", lambda **how: result)
    told = command()
    assert "distill_remembered" in told.stdout and "times the usual loop" in told.stdout
    assert len(list(rounds.RESULTS.iterdir())) == 1


@pytest.mark.parametrize("words, sentence", [
    (("--batch", "0"), "batch must be an integer from 1 to 4096, got '0'"),
    (("--network", "DenseNet-40-12"), "did you mean 'DenseNetBC-40-12'"),
    (("--device", "cuda:9"), "device 'cuda:9' is not here"),
    (("--precision", "fp8"), "unknown precision 'fp8'; did you mean"),
    (("--accelerate", "cuda-graphs"), "'cuda-graph'"),
    (("--network", "WideResNet-16-1", "--scaling"), "follows depth and growth of a DenseNetBC, got 'WideResNet-16-1'"),
])  # fmt: skip
def test_bad_input_is_one_sentence(words, sentence):
    told = command(*words)
    assert told.exit_code == 2 and sentence in told.stderr and "Traceback" not in told.stderr


def test_the_command_runs_as_typed():
    """From the repository's root, without training: its imports are found."""
    told = subprocess.run([sys.executable, "benchmarks/loop.py", "--help"], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert told.returncode == 0 and "--device" in told.stdout, told.stderr


def test_cifar_is_taken_where_it_is_and_never_downloaded(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: pytest.fail("was loaded, and would be downloaded"))
    what, made = case.images_at_hand(10)
    assert what.startswith("synthetic") and made.train.images.shape == (10, 3, 32, 32)
    assert made.train.images.dtype == torch.uint8 and len(made.classes) == 100
    monkeypatch.setattr(datasets, "locate", lambda name: ("parquet", "somewhere"))
    monkeypatch.setattr(datasets, "load", lambda name: made)
    what, found = case.images_at_hand(4)
    assert what == "CIFAR-100" and torch.equal(found.train.images, made.train.images[:4])


def test_traffic_counts_what_operators_read_and_write():
    """ReLU in place reads and writes 100 numbers of two bytes; a view moves nothing."""
    with ceilings.Traffic() as counted:
        x = torch.zeros(100, dtype=torch.bfloat16)
        start = counted.bytes
        x.view(10, 10).relu_()
    assert counted.bytes - start == 2 * 100 * 2
    assert ceilings.traffic(TINY, "fp32") == pytest.approx(2 * ceilings.traffic(TINY, "bf16"), rel=0.02)
    assert ceilings.traffic("DenseNetBC-16-2", "fp32") > ceilings.traffic(TINY, "fp32")


def test_the_trial_of_numerics_takes_turns_and_leaves_the_network_alone():
    network, device = models.build(TINY), torch.device("cpu")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ways = trial.candidates(device)
    rule, plain = (machine.numerics(precision, device) for precision in ("auto", "fp32"))
    assert ways[0] == (rule, True) and {(plain, True), (plain, False)} <= set(ways)
    seconds = trial.race(network, (3, 8, 8), 4, device, ways)
    assert len(seconds) == len(ways) and all(each > 0 for each in seconds)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_recorded_measurement_is_found_and_disturbs_no_run(tmp_path):
    result = described("A Processor (R), 2 cores")
    path = rounds.record(result, "loop")
    assert path.name == f"loop-{TINY}-4-a-processor-r-2-cores-2-threads-bf16-channels-last.json"
    assert measurements("loop", path.parent) == [result] and measurements("scaling", path.parent) == []
    assert Store(path.parents[1]).ids() == [] and recorded(Store(path.parents[1])) == []


def test_the_measurements_that_ship_name_their_hardware():
    found = measurements("loop") + measurements("scaling")
    assert found
    for result in found:
        assert result["hardware"] and result["precision"] and result["commit"] and models.parse(result["network"])
