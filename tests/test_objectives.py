"""The losses against float64 references written from the formulas, values and gradients."""

import math

import pytest
import torch

from banlib import objectives
from banlib.objectives import OBJECTIVES, objective_loss


def softmax(row, temperature):
    powers = [math.exp(value / temperature - max(row) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def reference(name, student, labels, teacher, temperature):
    """Mean loss in float64, with Python's own arithmetic: eqs. 1-3, and the 2018 version's CWTM."""
    label, soft, confidence = [], [], []
    for logits, target, says in zip(student, labels, teacher, strict=True):
        hot, said = softmax(logits, temperature), softmax(says, temperature)
        label.append(-math.log(softmax(logits, 1.0)[target]))
        soft.append(-(temperature**2) * sum(p * math.log(q) for p, q in zip(said, hot, strict=True)))
        confidence.append(max(said))
    count = len(label)
    return {
        "label": sum(label) / count,
        "teacher": sum(soft) / count,
        "label+teacher": sum(label) / count + sum(soft) / count,
        "cwtm": sum(c * loss for c, loss in zip(confidence, label, strict=True)) / sum(confidence),
    }[name]


def batch(seed=0, count=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(count, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, torch.randint(classes, (count,), generator=generator), teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", ["label", "teacher", "label+teacher", "cwtm", "dkpp"])
def test_value_and_gradient_equal_the_formula(name, temperature):
    student, labels, teacher = batch()
    logits = student.clone().requires_grad_()
    loss = objective_loss(name, logits, labels, teacher, temperature, generator=torch.Generator().manual_seed(3))
    if name == "dkpp":  # the teacher's loss, on what the same draw makes of its logits
        name, teacher = "teacher", objectives.permute_non_maximum(teacher, torch.Generator().manual_seed(3))
    rows = lambda tensor: [list(row) for row in tensor.tolist()]  # noqa: E731
    expected = reference(name, rows(student), labels.tolist(), rows(teacher), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    loss.backward()
    step = 1e-4
    for row, column in [(0, 0), (3, 2), (5, 4)]:
        sides = []
        for sign in (1, -1):
            moved = rows(student)
            moved[row][column] += sign * step
            sides.append(reference(name, moved, labels.tolist(), rows(teacher), temperature))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert logits.grad[row, column].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["teacher", "label+teacher", "cwtm", "dkpp"])
def test_no_gradient_reaches_the_teacher(name):
    student, labels, teacher = batch()
    teacher.requires_grad_()
    objective_loss(name, student.requires_grad_(), labels, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("name, terms", [("label", ["label"]), ("label+teacher", ["label", "teacher"]),
                                         ("teacher", [None, "teacher"]), ("cwtm", ["cwtm"])])  # fmt: skip
def test_each_term_has_its_weight(name, terms):
    student, labels, teacher = batch()
    weights = 0.5, 3.0
    loss = objective_loss(name, student, labels, teacher, 2.0, weights)
    rows = student.tolist(), labels.tolist(), teacher.tolist()
    expected = sum(weight * reference(term, *rows, 2.0) for weight, term in zip(weights, terms, strict=False) if term)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(OBJECTIVES) == {"label", "label+teacher", "teacher", "cwtm", "dkpp"}


def test_distillation_gradient_is_as_large_as_the_label_gradient():
    """A mean over classes, or a missing temperature**2, would make the teacher's term vanish beside the label's."""
    student, labels, teacher = batch(count=64, classes=100)
    for temperature in (1.0, 4.0):
        sizes = []
        for loss in (
            lambda logits: objectives.label_loss(logits, labels),
            lambda logits, t=temperature: objectives.distillation_loss(logits, teacher, t),
        ):
            logits = student.clone().requires_grad_()
            loss(logits).backward()
            sizes.append(logits.grad.norm().item())
        assert 0.1 < sizes[1] / sizes[0] < 10


def test_dkpp_keeps_the_maximum_and_shuffles_the_rest():
    logits = batch(count=200, classes=6)[2]
    shuffled = objectives.permute_non_maximum(logits, torch.Generator().manual_seed(1))
    top = logits.argmax(1)
    assert torch.equal(shuffled.argmax(1), top)
    assert torch.equal(shuffled.max(1).values, logits.max(1).values)
    assert torch.equal(shuffled.sort(1).values, logits.sort(1).values)
    assert not torch.equal(shuffled, logits)
    again = objectives.permute_non_maximum(logits, torch.Generator().manual_seed(1))
    assert torch.equal(shuffled, again)


def test_dkpp_permutes_uniformly():
    """Each of the three lesser values lands on each of the three other classes a third of the time."""
    logits = torch.tensor([[0.0, 9.0, 1.0, 2.0]]).repeat(30_000, 1)
    shuffled = objectives.permute_non_maximum(logits, torch.Generator().manual_seed(0))
    for place in (0, 2, 3):
        for value in (0.0, 1.0, 2.0):
            assert (shuffled[:, place] == value).double().mean().item() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("shape", [(6, 1), (1, 5), (6, 4), (5, 5), (6, 5, 1), (30,)])
def test_odd_teacher_logits_are_refused(shape):
    student, labels, _ = batch()
    with pytest.raises(ValueError, match=r"\[6, 5\].*same"):
        objectives.distillation_loss(student, torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(temperature):
    student, labels, teacher = batch()
    for name in ("teacher", "cwtm", "dkpp"):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            objective_loss(name, student, labels, teacher, temperature)
