"""The benchmark's promises but its speeds: that both loops learn the same, take turns, go on, and name the machine."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from banlib import bench, data, models, teachers, training
from banlib.__main__ import main
from banlib.lineage import recorded
from banlib.store import Store

TINY = "DenseNetBC-10-2"


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "LIMIT", 10)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results/benchmarks")


@pytest.fixture
def said():
    return []


def told(hardware):
    return {"network": TINY, "batch": 4, "hardware": hardware, "device": "cpu", "threads": 2, "cuda_graph": False,
            "numerics": "bf16, channels last"}  # fmt: skip


def two_steps(monkeypatch):
    monkeypatch.setattr(bench, "MOST_STEPS", 2)


def test_the_usual_loop_learns_what_ours_learns():
    """The same weights, batches and teacher give the same loss and the same weights: both are right, or both wrong."""
    case = bench.Case(TINY, "cpu", 8, steps=3)
    batches = training.epoch_draw(case.spec(), 1, 24, case.images.count)
    loader = [(case.images.batch(i, v), case.labels[i]) for i, v in zip(*(part.split(8) for part in batches))]
    teacher = models.build(TINY).eval()
    ended = []
    for who in ("usual", "ours"):
        student = case.network()
        optimizer = bench.sgd(student)
        if who == "usual":
            loss = bench.usual_epoch(loader, student, optimizer, teacher, case.device)
        else:
            asked = teachers.online(teacher, torch.no_grad)
            step = training.Step(case.spec(), student, optimizer, case.images, case.labels, asked)
            loss, _ = training.train_epoch(step, 1)
        ended.append((loss, torch.cat([parameter.flatten() for parameter in student.parameters()])))
    assert ended[0][0] == pytest.approx(ended[1][0], rel=1e-5)
    assert torch.allclose(ended[0][1], ended[1][1], atol=1e-6)


def test_the_usual_loops_images_are_crops_and_flips_of_the_datasets():
    """Every image that a worker gives is one of the 162 views that ours would draw."""
    case = bench.Case(TINY, "cpu", 4, steps=1)
    given = {}

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(100))

        def forward(self, images):
            given["images"] = images
            return self.weight.expand(len(images), -1)

    case.network = Student
    bench.usual(case, taught=False)(4)
    views = torch.cat([case.images.batch(torch.full((162,), i), torch.arange(162)) for i in range(4)])
    for image in given["images"]:
        assert (views - image).abs().amax((1, 2, 3)).min() < 1e-5


def test_what_is_reported_follows_from_the_seconds(monkeypatch, said):
    two_steps(monkeypatch)
    result = bench.loop(TINY, "cpu", 4, said.append)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    seconds = result["seconds"]
    assert {len(each) for each in seconds.values()} == {result["rounds"]} and result["rounds"] >= 1
    assert set(result["ratio_to_usual_loop"]) == {"plain", "distill_online", "distill_remembered"}
    for name, theirs in (("plain", "usual"), ("distill_online", "usual_teacher"), ("distill_remembered", "usual_teacher")):
        each = sorted(a / b for a, b in zip(seconds[theirs], seconds[name]))
        middle = (each[(len(each) - 1) // 2] + each[len(each) // 2]) / 2
        assert result["ratio_to_usual_loop"][name] == pytest.approx(middle, abs=1e-3)
        assert result["ratio_range"][name] == pytest.approx([each[0], each[-1]], abs=1e-3)
    share = 162 * (1 - (161 / 162) ** 200) / 200  # of 200 epochs' draws, those not drawn before
    expected = [later + share * fill for later, fill in zip(seconds["distill_later"], seconds["fill"])]
    assert seconds["distill_remembered"] == pytest.approx(expected)
    assert result["hardware"] and result["data"].startswith("synthetic") and result["images"] == 4 * result["steps"]
    assert all(value > 0 for value in result["ceilings"].values())


def test_variants_take_turns_and_a_stopped_measurement_goes_on(said, tmp_path):
    """Round by round; what was measured before it was stopped is kept, and forgotten once all is done."""
    order = []
    case = SimpleNamespace(name=TINY, batch=4, device=torch.device("cpu"), told=lambda: told("a machine"))
    turns = {name: ((lambda count, name=name: order.append(name)), 4) for name in ("usual", "ours")}
    kept = bench.Kept("loop", case, said.append)
    kept.begin(steps=3)

    def until_the_third(count):
        if order.count("usual") == 2:
            raise KeyboardInterrupt
        order.append("usual")

    with pytest.raises(KeyboardInterrupt):
        kept.measure({"usual": (until_the_third, 4), "ours": turns["ours"]}, 4, case.device)
    assert order == ["usual", "ours"] * 2
    again = bench.Kept("loop", case, said.append)
    again.begin(steps=7)
    assert again.state["steps"] == 3 and said[-1] == "going on after round 2"
    again.measure(turns, 4, case.device)
    assert order == ["usual", "ours"] * 4 and [len(each) for each in again.state["seconds"].values()] == [4, 4]
    again.done()
    assert bench.Kept("loop", case, said.append).state["seconds"] == {}


def test_rounds_of_another_machine_are_not_gone_on_with(said):
    for machine in ("one", "another"):
        case = SimpleNamespace(name=TINY, batch=4, device=torch.device("cpu"), told=lambda: told(machine))
        kept = bench.Kept("loop", case, said.append)
        kept.begin()
        assert kept.state["seconds"] == {}
        kept.measure({"usual": (lambda count: None, 4)}, 1, case.device)


def test_no_round_is_started_that_would_end_too_late(said, monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now.seconds)
    case = SimpleNamespace(name=TINY, batch=4, device=torch.device("cpu"), told=lambda: told("a machine"))
    kept = bench.Kept("loop", case, said.append)

    def turn(count):
        now.seconds += 4

    kept.measure({"usual": (turn, 4)}, 5, case.device)  # ends after 4 and 8 s; a third would end after 12
    assert len(kept.state["seconds"]["usual"]) == 2


def test_scaling_follows_one_thing_at_a_time(said):
    result = bench.scaling("DenseNetBC-16-2", "cpu", 4, said.append)
    axes = {}
    for point in result["points"]:
        assert all(point[kind] > 0 for kind in ("plain", "later", "fill"))
        axes.setdefault(point["axis"], []).append(point["value"])
    assert axes == {"depth": [10, 16, 28, 40], "growth": [1, 2, 4], "batch": [1, 2, 4, 8], "images": [4, 8, 16, 32]}
    assert result["share_asked"]["200"] == pytest.approx(0.575, abs=1e-3)
    chain = result["chain"]
    assert (chain["epochs"], chain["views"], len(chain["students"]), len(chain["generations"])) == (12, 18, 3, 3)
    assert all(each > 0 for each in [chain["plain"], *chain["students"], *chain["generations"]])


def test_of_a_teachers_students_the_first_asks_and_each_generation_does(monkeypatch):
    """18 views, 12 epochs of 8 images: the formula's share of the answers, to the chance of so few draws."""
    asked = []

    def fill(self, indices, views):
        asked.append(int((~self.known[indices, views]).sum()))
        self.known[indices, views] = True
        self.table.zero_()

    monkeypatch.setattr(teachers.Remembered, "fill", fill)
    turns = bench.raising(bench.Case(TINY, "cpu", 4, 2, recipe=bench.RECIPE.model_copy(update={"pad": 1})), 12)
    counts = {}
    for name in ("chain/plain", "students/1", "students/2", "students/3", "generations/1", "generations/2", "students/1"):
        asked.clear()
        turns[name](8 * 12)
        counts.setdefault(name, []).append(sum(asked))
    once = counts["students/1"][0]
    assert counts == {"chain/plain": [0], "students/1": [once] * 2, "students/2": [0], "students/3": [0],
                      "generations/1": [once], "generations/2": [once]}  # fmt: skip
    assert once / (8 * 12) == pytest.approx(teachers.share(12, 18), abs=0.1)


@pytest.mark.parametrize("how, numerics", [
    ({"precision": "fp32"}, "fp32"), ({"precision": "bf16", "cuda_graph": True, "pad_channels": True}, "bf16"),
])  # fmt: skip
def test_our_loop_computes_as_it_was_asked_to(monkeypatch, said, how, numerics):
    two_steps(monkeypatch)
    result = bench.loop(TINY, "cpu", 4, said.append, **how)
    assert result["numerics"].startswith(numerics) and result["precision"] == numerics
    assert result["cuda_graph"] is how.get("cuda_graph", False) and result["padded"] is how.get("pad_channels", False)


def test_the_command_prints_json_alone_and_keeps_it_when_asked(monkeypatch, capsys):
    two_steps(monkeypatch)
    for words in (["--json", "--record"], []):
        with pytest.raises(SystemExit) as left:
            main(["bench", "--network", TINY, "--batch", "4", "--device", "cpu", *words])
        told = capsys.readouterr()
        assert left.value.code == 0 and "round 1 of 2" in told.err
        if words:
            result = json.loads(told.out)
            assert set(result["ratio_to_usual_loop"]) == {"plain", "distill_online", "distill_remembered"}
            assert bench.recorded("loop", bench.RESULTS) == [result]
    assert "distill_remembered" in told.out and "times the usual loop" in told.out
    assert len(list(bench.RESULTS.iterdir())) == 1


def test_bad_input_is_one_sentence(said):
    for given, told in (({"batch": 0}, "batch must be an integer from 1 to 4096, got 0"),
                        ({"network": "DenseNet-40-12"}, "did you mean 'DenseNetBC-40-12'"),
                        ({"device": "cuda:9"}, "device 'cuda:9' is not here")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            bench.loop(**given, say=said.append)
    with pytest.raises(ValueError, match="scaling follows depth and growth of a DenseNetBC, got 'WideResNet-16-1'"):
        bench.scaling("WideResNet-16-1", "cpu", 4, said.append)


def test_cifar_is_taken_where_it_is_and_never_downloaded(monkeypatch):
    monkeypatch.setattr(data, "load", lambda name: pytest.fail("was loaded, and would be downloaded"))
    what, made = bench.images_at_hand(10)
    assert what.startswith("synthetic") and made.train.images.shape == (10, 3, 32, 32)
    assert made.train.images.dtype == torch.uint8 and len(made.classes) == 100
    monkeypatch.setattr(data, "locate", lambda name: ("parquet", "somewhere"))
    monkeypatch.setattr(data, "load", lambda name: made)
    what, found = bench.images_at_hand(4)
    assert what == "CIFAR-100" and torch.equal(found.train.images, made.train.images[:4])


def test_traffic_counts_what_operators_read_and_write():
    """ReLU in place reads and writes 100 numbers of two bytes; a view moves nothing."""
    with bench.Traffic() as counted:
        x = torch.zeros(100, dtype=torch.bfloat16)
        start = counted.bytes
        x.view(10, 10).relu_()
    assert counted.bytes - start == 2 * 100 * 2
    assert bench.traffic(TINY, "fp32") == pytest.approx(2 * bench.traffic(TINY, "bf16"), rel=0.02)
    assert bench.traffic("DenseNetBC-16-2", "fp32") > bench.traffic(TINY, "fp32")


def test_a_recorded_measurement_is_found_and_disturbs_no_run(tmp_path):
    result = told("A Processor (R), 2 cores")
    path = bench.record(result, "loop")
    assert path.name == f"loop-{TINY}-4-a-processor-r-2-cores-2-threads-bf16-channels-last.json"
    assert bench.recorded("loop", path.parent) == [result] and bench.recorded("scaling", path.parent) == []
    assert Store(path.parents[1]).ids() == [] and recorded(Store(path.parents[1])) == []


def test_the_measurements_that_ship_name_their_hardware():
    folder = bench.Path(bench.__file__).parents[1] / "results/benchmarks"
    found = bench.recorded("loop", folder) + bench.recorded("scaling", folder)
    assert found
    for result in found:
        assert result["hardware"] and result["precision"] and result["commit"] and models.parse(result["network"])
