"""What needs a GPU to be shown: that its fast steps are the reference's, that a record replays them, and that it can be
deterministic. Each is skipped where there is none; `test_machine.py` goes as far as a CPU goes."""

import contextlib

import pytest
import torch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec

from banlib import data, machine, teachers, training
from banlib.machine import REFERENCE, Numerics
from banlib.store import Store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CUDA = torch.device("cuda:0")
NETWORKS = ["DenseNetBC-16-6", "WideResNet-16-4"]  # the first has channels to pad


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def step_on(device, spec, numerics=REFERENCE, graph=False, compiled=False):
    dataset = data.load("digits").to(device)
    images = data.Augmented(dataset.train, dataset.mean, dataset.std, 1, False, "reflect")
    student = numerics.place(training.new_network(spec, dataset), device)
    asked = teachers.online(training.new_network(tiny_spec(seed=3), dataset).to(device), contextlib.nullcontext)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, foreach=True)
    if compiled:
        student.compile(dynamic=False)
    return training.Step(spec, student, optimizer, images, dataset.train.labels, asked, numerics, graph)


def learn(step, epochs=1):
    """(mean loss of each epoch, all weights)."""
    losses = [training.train_epoch(step, epoch)[0] for epoch in range(1, epochs + 1)]
    return losses, torch.cat([parameter.detach().flatten().cpu() for parameter in step.student.parameters()])


def taught(network="DenseNetBC-16-6", **changes):
    return tiny_spec(1, "0" * 16, network=network, recipe=recipe(**{"batch": 25, "dropout": 0.0} | changes))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("numerics, bound", [
    (REFERENCE, 1e-3), (Numerics("fp32"), 1e-3), (Numerics("bf16"), 0.05), (Numerics("bf16", compiled=True, padded=True), 0.05),
])  # fmt: skip
def test_four_fast_steps_are_those_of_the_reference_on_the_cpu(network, graph, numerics, bound):
    """Same batches, weights and teacher: the mean loss, to rounding; float32 without TF32."""
    expected, _ = learn(step_on(torch.device("cpu"), taught(network)))
    losses, _ = learn(step_on(CUDA, taught(network), numerics, graph, numerics.compiled))
    assert losses == pytest.approx(expected, rel=bound)


@pytest.mark.parametrize("network, objective", [(NETWORKS[0], "label+teacher"), (NETWORKS[1], "dkpp"), (NETWORKS[1], "cwtm")])
def test_a_recorded_step_is_the_step(network, objective):
    """Over three epochs at two learning rates: what the warm-ups moved was put back."""
    spec = taught(network, lr_milestones=(2,)).model_copy(update={"objective": objective})
    with machine.deterministic():
        plain, weights = learn(step_on(CUDA, spec), 3)
        losses, replayed = learn(step_on(CUDA, spec, graph=True), 3)
    if objective != "dkpp":  # whose permutations a record may draw from other parts of the stream
        assert losses == pytest.approx(plain, rel=1e-4)
        assert (weights - replayed).norm() < 1e-3 * weights.norm()
    assert losses[2] < losses[0]


def test_dropout_draws_anew_in_each_replay():
    """One batch, learning rate and momentum of nought: its losses differ by dropout alone."""
    spec = taught("WideResNet-16-1", dropout=0.5, lr=1e-30, momentum=0.0)
    step, losses = step_on(CUDA, spec, graph=True), []
    batch = torch.arange(25, device=CUDA), torch.zeros(25, dtype=torch.int64, device=CUDA)
    with machine.seeded(1, CUDA):
        for _ in range(4):
            step.begin(1)
            step(*batch)
            losses.append(step.loss.item())
    assert len(set(losses)) == 4


def test_remembered_equals_online():
    dataset = data.load("digits").to(CUDA)
    images = data.Augmented(dataset.train, dataset.mean, dataset.std, 1, False, "reflect")
    network = training.new_network(tiny_spec(seed=3), dataset).to(CUDA)
    online = teachers.online(network, contextlib.nullcontext)
    table = teachers.Remembered(network, contextlib.nullcontext, images, 100, 10)
    for epoch in (1, 2):
        indices, views = (part.to(CUDA) for part in training.epoch_draw(tiny_spec(), epoch, 100, 9))
        table.fill(indices, views)
        batch = images.batch(indices, views)
        assert (table(batch, indices, views) - online(batch, indices, views)).abs().max() < 1e-4


@pytest.mark.parametrize("graph", [False, True])
def test_a_deterministic_run_that_was_resumed_has_the_bits_of_a_straight_one(tmp_path, graph):
    spec, how = tiny_spec(recipe=recipe(precision="auto")), {"deterministic": True, "cuda_graph": graph}
    expected = training.fit(spec, Store(tmp_path / "straight"), "cuda", progress=False, **how)
    stopped = Store(tmp_path / "stopped")

    with interrupted_in(3):
        training.fit(spec, stopped, "cuda", progress=False, **how)
    assert outcome(training.fit(spec, stopped, "cuda", progress=False, **how)) == outcome(expected)


def test_the_count_of_a_steps_memory_is_near_what_it_takes():
    """DenseNetBC-40-12 at batch 128 in bf16, within a third, with and without recomputing."""
    from banlib import models

    for again in (False, True):
        network = models.build("DenseNetBC-40-12")
        if again:
            models.recompute(network)
        counted = machine.step_memory(network, (3, 32, 32), 128, "bf16")
        step = machine.step_in(network, (3, 32, 32), 128, CUDA, Numerics("bf16"))
        step()
        torch.cuda.reset_peak_memory_stats(CUDA)
        step()
        assert 0.67 * counted < torch.cuda.max_memory_allocated(CUDA) < 1.5 * counted
