"""What needs a GPU to be shown: that its fast passes are the reference's, that captured graphs replay them, and that it can be
deterministic. Each is skipped where there is none; `test_accelerate.py` goes as far as a CPU goes."""

import contextlib
from functools import partial

import pytest
import torch

from banlib import loop, models, teachers
from banlib.objectives import objective_loss
from banlib.runs import accelerate, datasets, fit, machine
from banlib.runs.machine import Numerics
from banlib.runs.store import Store
from banlib.views import Augmented, draw_epoch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
REFERENCE = Numerics("fp32", "contiguous")
NETWORKS = ["DenseNetBC-16-6", "WideResNet-16-4"]  # the first has channels to pad


@pytest.fixture(autouse=True)
def float32_is_float32():
    with machine.own_settings("cuda"):
        yield


def images_on(device, numerics=REFERENCE):
    digits = datasets.load("digits").to(device)
    images = Augmented(digits.train, digits.mean, digits.std, 1, False, "reflect", numerics.memory_format)
    return images, digits.train.labels


def learn(spec, device, numerics=REFERENCE, names=(), epochs=1):
    """(mean loss of each epoch, all weights) of a student of an online teacher, at the recipe's rates."""
    images, labels = images_on(device, numerics)
    student = fit.new_network(spec, datasets.load("digits")).to(device, memory_format=numerics.memory_format)
    teacher = fit.new_network(tiny_spec(seed=3), datasets.load("digits")).to(device)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True, foreach=True)
    autocast, generator = partial(numerics.autocast, device), torch.Generator(device)
    accelerate.apply(names, student, images, spec.recipe.batch, autocast)
    asked = teachers.online(teacher, contextlib.nullcontext)

    def loss(logits, labels, answers):
        return objective_loss(spec.objective, logits, labels, answers, generator=generator)

    losses = []
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = spec.recipe.lr_at(epoch)
        generator.manual_seed(epoch)
        order, views = (part.to(device) for part in draw_epoch(spec.stream("epoch", epoch), 100, 9))
        with machine.seeded(epoch, device):
            learner, drawn = (student, optimizer, loss, images, labels), (order, views, spec.recipe.batch)
            losses.append(loop.train_epoch(*learner, *drawn, asked, autocast)[0])
    return losses, torch.cat([parameter.detach().flatten().cpu() for parameter in student.parameters()])


def taught(network="DenseNetBC-16-6", **changes):
    return tiny_spec(1, "0" * 16, network=network, recipe=recipe(**{"batch": 25, "dropout": 0.0} | changes))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("numerics, names, bound", [
    (REFERENCE, (), 1e-3), (Numerics("fp32"), (), 1e-3), (Numerics("fp32"), ("cuda-graph",), 1e-3), (Numerics("bf16"), (), 0.05),
    (Numerics("bf16"), ("cuda-graph",), 0.05), (Numerics("bf16"), ("compile", "pad-channels"), 0.05),
    (Numerics("bf16"), ("compile", "cuda-graph", "pad-channels"), 0.05),
])  # fmt: skip
def test_four_fast_steps_are_those_of_the_reference_on_the_cpu(network, numerics, names, bound):
    """Same batches, weights and teacher: the mean loss, to rounding; float32 without TF32."""
    expected, _ = learn(taught(network), CPU)
    losses, _ = learn(taught(network), CUDA, numerics, names)
    assert losses == pytest.approx(expected, rel=bound)


@pytest.mark.parametrize("network, objective", [(NETWORKS[0], "label+teacher"), (NETWORKS[1], "dkpp"), (NETWORKS[1], "cwtm")])
def test_captured_passes_are_the_passes(network, objective):
    """Over three epochs at two learning rates, with a last batch of another size: what the warm-ups moved was put back."""
    spec = taught(network, lr_milestones=(2,), batch=30).model_copy(update={"objective": objective})
    with machine.own_settings("cuda", deterministic=True):
        plain, weights = learn(spec, CUDA, epochs=3)
        losses, replayed = learn(spec, CUDA, names=("cuda-graph",), epochs=3)
    assert losses == pytest.approx(plain, rel=1e-4)
    assert (weights - replayed).norm() < 1e-3 * weights.norm()
    assert losses[2] < losses[0]


def test_dropout_draws_anew_in_each_replay():
    """One batch: its outputs differ by dropout alone."""
    spec, (images, _) = taught("WideResNet-16-1", dropout=0.5), images_on(CUDA)
    student = fit.new_network(spec, datasets.load("digits")).to(CUDA)
    accelerate.capture(student, images, 25, contextlib.nullcontext)
    batch = images.batch(torch.arange(25, device=CUDA), torch.zeros(25, dtype=torch.int64, device=CUDA))
    with machine.seeded(1, CUDA):
        assert len({student(batch).sum().item() for _ in range(4)}) == 4


def test_remembered_equals_online():
    images, _ = images_on(CUDA)
    network = fit.new_network(tiny_spec(seed=3), datasets.load("digits")).to(CUDA)
    online = teachers.online(network, contextlib.nullcontext)
    table = teachers.Remembered(network, contextlib.nullcontext, images, 10)
    for epoch in (1, 2):
        indices, views = (part.to(CUDA) for part in draw_epoch(epoch, 100, 9))
        table.fill(indices, views)
        batch = images.batch(indices, views)
        assert (table(batch, indices, views) - online(batch, indices, views)).abs().max() < 1e-4


@pytest.mark.parametrize("names", [(), ("cuda-graph",)])
def test_a_deterministic_run_that_was_resumed_has_the_bits_of_a_straight_one(tmp_path, names):
    spec, how = tiny_spec(recipe=recipe(precision="auto")), {"deterministic": True, "accelerate": names}
    expected = fit.fit(spec, Store(tmp_path / "straight"), "cuda", progress=False, **how)
    stopped = Store(tmp_path / "stopped")
    with interrupted_in(3):
        fit.fit(spec, stopped, "cuda", progress=False, **how)
    assert outcome(fit.fit(spec, stopped, "cuda", progress=False, **how)) == outcome(expected)


def test_a_divergence_is_found_at_the_end_of_its_epoch(store):
    spec = tiny_spec(recipe=recipe(epochs=30, lr=1e8, lr_milestones=()))
    with pytest.raises(fit.Diverged, match=r"diverged in epoch [1-9], step [12], .*not finite, or exploded"):
        fit.fit(spec, store, "cuda", progress=False)


def test_the_count_of_a_steps_memory_is_near_what_it_takes():
    """DenseNetBC-40-12 at batch 128 in bf16, within a third, with and without recomputing."""
    images, labels = torch.randn(128, 3, 32, 32, device=CUDA), torch.zeros(128, dtype=torch.int64, device=CUDA)
    for again in (False, True):
        network = models.build("DenseNetBC-40-12")
        if again:
            accelerate.recompute(network)
        counted = machine.step_memory(network, (3, 32, 32), 128, "bf16")
        network.to(CUDA).train()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(CUDA)
            with Numerics("bf16").autocast(CUDA):
                logits = network(images)
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        assert 0.67 * counted < torch.cuda.max_memory_allocated(CUDA) < 1.5 * counted
