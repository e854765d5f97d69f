"""The dense block of the benchmarks: the eager block's mathematics, whatever it keeps."""

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from banlib import models
from banlib.runs import machine

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
dense_block, dense_step = map(importlib.import_module, ("dense_block", "dense_step"))

KEEPS = ("all", "bottleneck", "features")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(dense_block, "PIECE", 3 * 8 * 8 * 8 * 8)  # three images of the first layer's eight channels


def pair(keep, name="DenseNetBC-22-4", dtype=torch.float64):
    """(eager, replaced): the same weights, away from where BatchNorm's begin, one of them zero."""
    torch.manual_seed(0)
    eager = models.build(name, classes=10, image_size=8).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        for norm in (each for each in eager.modules() if isinstance(each, torch.nn.BatchNorm2d)):
            norm.weight.add_(torch.randn_like(norm.weight))[0] = 0
            norm.bias.add_(torch.randn_like(norm.bias))
    mine = copy.deepcopy(eager)
    assert dense_block.replace(mine, keep) == 3
    return eager, mine


def learned(network, precision="fp32", steps=2):
    """The loss of each step and, at the end, gradients and state by name."""
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        images = torch.randn(7, 3, 8, 8).to(network.head.classifier.weight.dtype)
        with machine.Numerics(precision).autocast("cpu"):
            logits = network.train()(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.to(torch.float64), torch.arange(7))
        loss.backward()
        losses.append(loss.detach())
    gradients = {f"gradient of {name}": each.grad for name, each in network.named_parameters()}
    return {"losses": torch.stack(losses)} | gradients | network.state_dict()


@pytest.mark.parametrize("keep", KEEPS)
def test_a_replaced_block_learns_what_the_eager_one_does(keep):
    """In float64: losses, every gradient, running statistics and their counts, over two steps."""
    expected, got = map(learned, pair(keep))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        error = (got[name] - value).abs().max() / value.abs().max().clamp(min=1)
        assert error < 1e-10, name


@pytest.mark.parametrize("keep", KEEPS)
def test_in_bf16_it_is_as_near_to_the_truth_as_the_eager_one(keep):
    """The gradient's distance to float64's, within a tenth; the loss within 1e-3 of the eager one."""
    eager, mine = pair(keep, dtype=torch.float32)
    truth = learned(copy.deepcopy(eager).double(), steps=1)
    found = [learned(network, "bf16", steps=1) for network in (eager, mine)]
    assert found[1]["losses"].item() == pytest.approx(found[0]["losses"].item(), rel=1e-3)
    flat = [torch.cat([v.flatten().double() for k, v in f.items() if "gradient" in k]) for f in (truth, *found)]
    errors = [(each - flat[0]).norm() / flat[0].norm() for each in flat[1:]]
    assert errors[1] < 1.1 * errors[0]


def test_where_nothing_is_learned_it_is_the_eager_one():
    eager, mine = pair("features")
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(eager.eval()(images), mine.eval()(images))
    with torch.no_grad():
        assert torch.equal(eager.train()(images), mine.train()(images))


@pytest.mark.parametrize("name", ["WideResNet-10-1", "MatchWideResNet-1-1@DenseNetBC-10-4"])
def test_other_units_stay_as_they_are(name):
    """Dropout is theirs alone."""
    assert dense_block.replace(models.build(name, dropout=0.3), "features") == 0


def test_every_way_steps_and_convolutions_are_a_share_of_it():
    for way in dense_step.WAYS.keys() - {"compiled"}:
        step = dense_step.step_of("DenseNetBC-10-4", way, 4, machine.Numerics("fp32"), dense_step.DIGITS)
        assert 0 < dense_step.share(step) < 1, way


def test_an_unknown_way_is_one_sentence():
    told = CliRunner().invoke(dense_step.main, ["--ways", "faster"])
    assert told.exit_code == 2 and "unknown way 'faster'; there are eager, shared" in told.stderr
