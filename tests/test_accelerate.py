"""Speed-ups: off unless asked for, and the same function where they are on, as far as a CPU can show it."""

import warnings

import pytest
import torch

from banlib import models
from banlib.paper import printed
from banlib.runs import accelerate, datasets, fit, machine
from banlib.runs.store import Store
from banlib.views import Augmented
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec


def train(spec, store, **options):
    return fit.fit(spec, store, "cpu", threads=1, progress=False, **options)


def images():
    digits = datasets.load("digits")
    return Augmented(digits.train, digits.mean, digits.std, 1, False, "reflect")


# Compiling


def test_a_compiled_student_learns_the_same(tmp_path, monkeypatch):
    """To 1e-4 in the losses, by the graphs of torch.compile without their C++; nothing else is compiled, or by default."""
    really, compiled, losses = torch.compile, [], []

    def spied(function, **options):
        compiled.append(function.__self__)
        options.pop("mode")
        return really(function, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", spied)
    for names in ((), ("compile",)):
        run = train(tiny_spec(recipe=recipe(epochs=2)), Store(tmp_path / str(names)), accelerate=names)
        assert run.environments[0]["accelerate"] == list(names) and len(compiled) == len(names)
        losses.append(list(run.metrics["train_loss"]))
    assert isinstance(compiled[0], torch.nn.Module) and set(run.weights()) == set(compiled[0].state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiler_that_was_asked_for_and_fails_is_told_in_a_sentence(store, monkeypatch):
    def broken(*args):
        raise OSError("no compiler here\nand more")

    really = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: really(function, backend=broken))
    spec = tiny_spec(recipe=recipe(epochs=1))
    with pytest.raises(RuntimeError, match=r"^DenseNetBC-10-4 .* cannot be compiled here \(.*\): train it without compile$"):
        train(spec, store, accelerate=["compile"])
    assert store.status(spec.run_id) != "finished"


def test_a_run_that_changes_its_speed_ups_is_warned_of(store):
    with interrupted_in(3):
        train(tiny_spec(), store)
    with pytest.warns(UserWarning, match="goes on under other conditions .accelerate .* -> .'pad-channels'"):
        train(tiny_spec(), store, accelerate=("pad-channels",))


# Padding


def test_a_padded_network_is_the_same_function():
    """Logits and all gradients to the order of sums; nothing else of its weights changes."""
    found = []
    for padded in (False, True):
        torch.manual_seed(0)
        network = models.build("DenseNetBC-16-6", 10, 1, 8)
        if padded:
            accelerate.pad_channels(network)
            count = sum(type(layer) is accelerate.PaddedConv2d for layer in network.modules())
            assert count >= 6 and type(network.stem) is torch.nn.Conv2d
        out = network(images().batch(torch.arange(50), torch.zeros(50, dtype=torch.int64)))
        out.square().sum().backward()
        found.append((out, torch.cat([parameter.grad.flatten() for parameter in network.parameters()]), network))
    for plain, got in zip(found[0][:2], found[1][:2], strict=True):
        assert (plain - got).norm() <= 1e-4 * plain.norm()
    assert found[0][2].state_dict().keys() == found[1][2].state_dict().keys()


def test_a_padded_run_learns_the_same(tmp_path):
    losses = []
    for names in ((), ("pad-channels",)):
        run = train(tiny_spec(network="DenseNetBC-10-6"), Store(tmp_path / str(names)), accelerate=names)
        losses.append(list(run.metrics["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Recorded passes


@pytest.fixture
def captures(monkeypatch):
    """A stand-in for CUDA's: three passes to warm up, and then the network's own forward pass, counted."""
    seen = {"captured": 0, "replayed": []}

    def graphed(network, samples):
        assert network.training
        eager = network.forward
        for _ in range(3):
            network(*samples).sum().backward()
        seen["captured"] += 1
        network.forward = lambda batch: (seen["replayed"].append(len(batch)), eager(batch))[1]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphed)
    really = accelerate.apply
    monkeypatch.setattr(accelerate, "apply", lambda names, student, images, batch, autocast: (
        accelerate.capture(student, images, batch, autocast) if "cuda-graph" in names
        else really(names, student, images, batch, autocast)))  # fmt: skip
    return seen


@pytest.mark.parametrize("network, objective", [("DenseNetBC-10-4", "label+teacher"), ("WideResNet-10-1", "dkpp")])
def test_captured_passes_train_the_same_bits(tmp_path, captures, network, objective):
    """With warm-ups that are undone, dropout, tests, and a last batch of another size.

    What CUDA does with a captured graph waits for a GPU (tests/test_cuda.py).
    """
    teacher, own = tiny_spec(), recipe(epochs=4, batch=30, lr_milestones=(2,), dropout=0.3)
    outcomes = []
    for names in ((), ("cuda-graph",)):
        store = Store(tmp_path / str(names))
        train(teacher, store)
        spec = tiny_spec(1, teacher.run_id, network=network, recipe=own, objective=objective)
        run = train(spec, store, accelerate=names)
        assert run.environments[0]["accelerate"] == list(names)
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]
    assert captures["captured"] == 1 and captures["replayed"] == [30] * 3 * 4


def test_on_a_cpu_nothing_is_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_: pytest.fail("captured"))
    train(tiny_spec(recipe=recipe(epochs=1)), Store(tmp_path), accelerate=("cuda-graph",))


# Memory


@pytest.mark.parametrize("name", printed.NAMES)
def test_each_network_of_the_tables_can_be_trained_on_a_gpu_of_16_gb(name):
    """In bf16, batch 128, by the count; the largest DenseNets only by computing again what their units would keep."""
    network = models.skeleton(name)
    needed = machine.step_memory(network, (3, 32, 32), 128, "bf16")
    if accelerate.recompute(network):
        less = machine.step_memory(network, (3, 32, 32), 128, "bf16")
        assert less < 0.55 * needed
        needed = min(needed, less)
    assert 1e8 < needed < 15e9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_memory_is_short_dense_units_recompute_to_the_same_bits(tmp_path, monkeypatch, precision):
    """Weights, running statistics and their counts, through a resume."""
    spec = tiny_spec(recipe=recipe(precision=precision))
    expected = train(spec, Store(tmp_path / "roomy"))
    monkeypatch.setattr(machine, "free_memory", lambda device: 1e6)
    store, said = Store(tmp_path / "tight"), r"training takes .* dense units compute again what they would keep"
    with pytest.warns(UserWarning, match=said), interrupted_in(3):
        train(spec, store)
    with pytest.warns(UserWarning, match=said):
        run = train(spec, store)
    assert outcome(run) == outcome(expected)
    assert [env["recomputed"] for env in expected.environments + run.environments] == [False, True, True]


def test_where_nobody_tells_how_much_memory_there_is_nothing_recomputes(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: float("inf"))
    with warnings.catch_warnings(action="error"):
        run = train(tiny_spec(recipe=recipe(epochs=1)), Store(tmp_path))
    assert run.environments[0]["recomputed"] is False


@pytest.mark.parametrize("network, told", [("DenseNetBC-10-4", 1), ("WideResNet-10-1", 0)])
def test_a_table_of_answers_makes_room_for_a_training_that_does_not_fit(store, monkeypatch, recwarn, network, told):
    """Whether or not the network has units that can recompute."""
    monkeypatch.setattr(accelerate, "_kept", {"another teacher": "a table"})
    monkeypatch.setattr(machine, "free_memory", lambda device: 1e3)
    train(tiny_spec(network=network, recipe=recipe(epochs=1)), store)
    assert accelerate._kept == {}
    assert sum("compute again" in str(warning.message) for warning in recwarn) == told


def test_units_that_recompute_keep_less():
    """By what autograd packs in a real forward pass, not by the count on the meta device."""
    kept = []
    for again in (False, True):
        network, sizes = models.build("DenseNetBC-22-12"), {}
        if again:
            assert accelerate.recompute(network) == 9

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(torch.zeros(2, 3, 32, 32)).sum()
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.55 * kept[0]
