"""What the teacher says, asked on every batch or remembered: the same answers, and a network that stands still."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from banlib import models, teachers
from banlib.views import Augmented, Split, draw_epoch

COUNT, VIEWS = 100, 9
LAST = torch.channels_last


def network(seed=0, layout=torch.contiguous_format):
    """A network whose BatchNorm has seen something, as a trained one's has."""
    torch.manual_seed(seed)
    made = models.build("DenseNetBC-10-4", classes=10, in_channels=1, image_size=8)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return made.to(memory_format=layout)


def augmented(layout=torch.contiguous_format):
    images = torch.randint(256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.zeros(COUNT, dtype=torch.int64))
    return Augmented(split, torch.tensor([0.4]), torch.tensor([0.3]), 1, False, "reflect", layout)


def made(way, net, images, autocast=contextlib.nullcontext):
    if way == "online":
        return teachers.online(net, autocast)
    if way == "remembered":
        return teachers.remembered(net, autocast, images, 10)
    teacher = teachers.Remembered(net, autocast, images, 10, torch.float16)
    for view in range(VIEWS):
        teacher.fill(torch.arange(COUNT), torch.full((COUNT,), view))
    return teacher


WAYS = pytest.mark.parametrize("way", ["online", "remembered", "filled"])


@WAYS
def test_a_network_in_training_mode_is_frozen_to_be_a_teacher(way):
    net, images = network().train().requires_grad_(True), augmented()
    before = copy.deepcopy(net.state_dict())
    teacher = made(way, net, images)
    indices, views = torch.arange(20), torch.arange(20) % VIEWS
    logits = teacher(images.batch(indices, views), indices, views)
    assert logits.shape == (20, 10) and not logits.requires_grad
    assert not any(part.training for part in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@WAYS
def test_a_teacher_says_how_it_answers(way):
    said = {"online": "online", "remembered": "remembered in float32", "filled": "remembered in float16"}
    assert teachers.kind(made(way, network(), augmented())) == said[way]


@pytest.mark.parametrize("way, tolerance", [("remembered", 1e-5), ("filled", 5e-3)])
def test_remembered_equals_online_for_every_image_and_view(way, tolerance):
    """In the logits: sums in another order, and float16's rounding, 2**-11 of logits below ten. Any other image or view
    is further off."""
    images, net = augmented(), network()
    pairs = torch.cartesian_prod(torch.arange(COUNT), torch.arange(VIEWS))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    ways, told = [made(way, net, images), made("online", net, images)], []
    for indices, views in (part.unbind(1) for part in pairs.split(50)):
        batch = images.batch(indices, views)
        told.append([teacher(batch, indices, views) for teacher in ways])
    table, online = (torch.cat(parts) for parts in zip(*told, strict=True))
    assert table.dtype == torch.float32 and (table - online).abs().max() < tolerance
    apart = torch.cdist(table, online, p=torch.inf)
    assert (apart.argmin(1) == torch.arange(len(pairs))).double().mean() > 0.97


def test_a_large_table_is_filled_as_epochs_draw_from_it():
    images, net = augmented(), network()
    online = teachers.online(net, contextlib.nullcontext)
    teacher = teachers.Remembered(net, contextlib.nullcontext, images, 10)
    assert not teacher.known.any()
    for seed in (1, 2, 3):
        indices, views = draw_epoch(seed, COUNT, VIEWS)
        teacher.fill(indices, views)
        batch = images.batch(indices, views)
        assert (teacher(batch, indices, views) - online(batch, indices, views)).abs().max() < 1e-5
    assert COUNT < teacher.known.sum() < 3 * COUNT


def test_nothing_is_asked_twice():
    teacher, asked = teachers.Remembered(network(), contextlib.nullcontext, augmented(), 10), []
    ask = teacher.ask
    teacher.ask = lambda batch, *pair: (asked.append(len(batch)), ask(batch, *pair))[1]
    indices, views = draw_epoch(1, COUNT, VIEWS)
    teacher.fill(indices, views)
    assert asked == [64, 64] and teacher.known.sum() == COUNT  # two of each row of a batch but the last 28
    teacher.fill(indices[:50], views[:50])
    assert asked == [64, 64]


@pytest.mark.parametrize("precision, layout", [("fp32", torch.contiguous_format), ("fp32", LAST), ("bf16", LAST)])
def test_an_answer_has_the_same_bits_whatever_is_asked_beside_it(precision, layout):
    """On a CPU: what lets a resumed run, and a later student, fill the table in another order."""

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    net, tables = network(layout=layout), []
    for order in (torch.arange(100), torch.arange(99, -1, -1), torch.arange(100) * 37 % 100):
        teacher = teachers.Remembered(net, autocast, augmented(layout), 10)
        for part in order.split(70):  # filled up to a batch of another mixture
            teacher.fill(part, part % 9)
        tables.append(teacher.table[torch.arange(100), torch.arange(100) % 9])
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


def test_every_image_has_one_seat_that_depends_on_its_number_alone():
    for indices in (torch.arange(200), torch.arange(0, 900, 64), torch.randperm(500)[:130], torch.tensor([7])):
        plan = teachers.seats(indices)
        assert plan.shape[1] == 64 and plan[plan >= 0].sort().values.tolist() == list(range(len(indices)))
        for row in plan:
            for seat, place in enumerate(row.tolist()):
                assert place < 0 or indices[place] % 64 == seat


@pytest.mark.parametrize("scale, dtype", [(1, torch.float16), (1e6, torch.float32)])
def test_answers_are_halves_only_where_that_moves_no_probability(scale, dtype):
    class Loud(nn.Module):
        def forward(self, batch):
            return scale * torch.randn(len(batch), 10, generator=torch.Generator().manual_seed(0))

    assert teachers.table_type(Loud(), contextlib.nullcontext, augmented()) == dtype


def test_share_is_that_of_the_draws():
    """By simulation: 162 views, drawn anew each epoch, for many images."""
    seen, generator = torch.zeros(4000, 162, dtype=torch.bool), torch.Generator().manual_seed(0)
    for epoch in range(1, 201):
        seen[torch.arange(4000), torch.randint(162, (4000,), generator=generator)] = True
        if epoch in (1, 10, 200):
            assert teachers.share(epoch, 162) == pytest.approx(seen.sum().item() / 4000 / epoch, rel=0.01)
