"""The loop of the paper: who teaches whom, and what one epoch does to the weights."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F

from banlib import loop, models, teachers
from banlib.objectives import objective_loss
from banlib.views import Augmented, Split, draw_epoch

COUNT, BATCH, VIEWS = 70, 30, 9  # the last batch has ten images


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=generator), labels())
    return Augmented(split, torch.tensor([0.4]), torch.tensor([0.3]), 1, False, "reflect")


def labels():
    return torch.randint(10, (COUNT,), generator=torch.Generator().manual_seed(1))


def network(seed, name="DenseNetBC-10-4"):
    torch.manual_seed(seed)
    return models.build(name, classes=10, in_channels=1, image_size=8)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


def both(student_logits, targets, teacher_logits):
    return objective_loss("label+teacher", student_logits, targets, teacher_logits)


# The generations


@pytest.mark.parametrize("generations", [0, 1, 3])
def test_each_generation_is_taught_by_the_one_before(generations):
    trained = []

    def train(generation, teacher):
        trained.append((generation, teacher))
        return f"network {generation}"

    lineage = loop.born_again(train, generations)
    assert lineage == [f"network {generation}" for generation in range(generations + 1)]
    assert trained == [(0, None), *((number, f"network {number - 1}") for number in range(1, generations + 1))]


# The epoch


def test_a_handwritten_epoch_gives_the_same_weights(images):
    """As in chapter 2: eqs. 1-3 batch by batch, PyTorch's own losses and optimizer. Bit by bit."""
    student, taught = network(1), network(2).eval().requires_grad_(False)
    own = copy.deepcopy(student)
    order, views = draw_epoch(3, COUNT, VIEWS)
    teacher = teachers.online(copy.deepcopy(taught), contextlib.nullcontext)
    mean_loss, error = loop.train_epoch(student, sgd(student), both, images, labels(), order, views, BATCH, teacher)

    optimizer, losses, wrong = sgd(own.train()), 0.0, 0
    for start in range(0, COUNT, BATCH):
        batch = order[start : start + BATCH]
        inputs, targets = images.batch(batch, views[start : start + BATCH]), labels()[batch]
        logits = own(inputs)
        loss = F.cross_entropy(logits, targets) + F.cross_entropy(logits, taught(inputs).softmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(batch)
        wrong += (logits.argmax(1) != targets).sum().item()

    ours, theirs = student.state_dict(), own.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert mean_loss == pytest.approx(losses / COUNT, rel=1e-6), "the mean over images: the last batch is smaller"
    assert error == pytest.approx(100 * wrong / COUNT)


def test_every_image_is_shown_once_in_its_view_and_the_teacher_sees_it_too(images):
    order, views = draw_epoch(1, COUNT, VIEWS)
    asked, told, stepped = [], [], []

    def teacher(batch, indices, view):
        asked.append((batch, indices, view))
        return torch.zeros(len(batch), 10)

    student = network(0)
    student.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    after = stepped.append
    loop.train_epoch(student, sgd(student), both, images, labels(), order, views, BATCH, teacher, after_step=after)
    assert torch.equal(torch.cat([indices for _, indices, _ in asked]), order)
    assert torch.equal(torch.cat([view for _, _, view in asked]), views)
    assert all(batch is shown for (batch, *_), shown in zip(asked, told, strict=True))
    assert torch.equal(torch.cat(told), images.batch(order, views))
    assert stepped == [30, 30, 10]


def test_without_a_teacher_the_loss_gets_none(images):
    student, given = network(0), []

    def loss(logits, targets, answers):
        given.append(answers)
        return F.cross_entropy(logits, targets)

    loop.train_epoch(student, sgd(student), loss, images, labels(), *draw_epoch(1, COUNT, VIEWS), BATCH)
    assert given == [None] * 3


def test_before_a_step_gradients_are_known_and_weights_have_not_moved(images):
    """So that an error raised there leaves the weights as the last good step left them."""
    student, seen = network(0), []
    start = student.stem.weight.detach().clone()

    def before(loss):
        seen.append((loss.item(), student.stem.weight.grad.norm().item(), torch.equal(student.stem.weight, start)))
        raise FloatingPointError

    epoch = student, sgd(student), both, images, labels(), *draw_epoch(1, COUNT, VIEWS), BATCH
    with pytest.raises(FloatingPointError):
        loop.train_epoch(*epoch, teachers.online(network(1), contextlib.nullcontext), before_step=before)
    [(loss, gradient, unmoved)] = seen
    assert loss > 0 and gradient > 0 and unmoved and torch.equal(student.stem.weight, start)


def test_the_epoch_trains_in_training_mode_under_autocast(images):
    student, seen = network(0).eval(), []

    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    def loss(logits, targets, answers):
        seen.append((student.training, logits.dtype, answers.dtype, torch.is_autocast_enabled("cpu")))
        return both(logits, targets, answers)

    epoch = student, sgd(student), loss, images, labels(), *draw_epoch(1, COUNT, VIEWS), BATCH
    loop.train_epoch(*epoch, teachers.online(network(1), autocast), autocast)
    assert set(seen) == {(True, torch.bfloat16, torch.bfloat16, False)}
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


# What is predicted


def test_predictions_are_of_the_plain_images_in_order(images):
    net = network(0)
    loop.train_epoch(
        net,
        sgd(net),
        both,
        images,
        labels(),
        *draw_epoch(1, COUNT, VIEWS),
        BATCH,
        lambda batch, *_: torch.zeros(len(batch), 10),
    )
    before = copy.deepcopy(net.state_dict())
    logits = loop.predict(net, images, batch=32)
    assert logits.shape == (COUNT, 10) and logits.dtype == torch.float32 and not logits.requires_grad
    assert not net.training and all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        one_by_one = torch.cat([net(images.plain(torch.tensor([index]))) for index in range(COUNT)])
    torch.testing.assert_close(logits, one_by_one, atol=1e-5, rtol=0)
    assert loop.predict(net, images, lambda: torch.autocast("cpu", torch.bfloat16)).dtype == torch.float32
