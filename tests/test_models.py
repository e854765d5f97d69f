"""Networks: their counts against the paper's, their arithmetic against a restatement, and bad arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from banlib import models
from banlib.models import DenseNet, DenseUnit
from banlib.models.resnet import BasicUnit, BottleneckUnit, Dropout
from banlib.paper import printed

# A small network of each family, and of each way to name one.
SMALL = (
    "DenseNetBC-10-3",
    "DenseNetBC-16-4-t3",
    "WideResNet-10-1",
    "WideResNet-16-2",
    "PreActResNet-20",
    "MatchPreResNet-2-1@DenseNetBC-16-4",
    "MatchWideResNet-1-0.5@DenseNetBC-16-4-t3",
    "MatchDenseNet-3-1-2@DenseNetBC-16-4",
    "MatchDenseNet-2-0.5-1@DenseNetBC-16-4-t3",
)


def small(name, dropout=0.0):
    return models.build(name, classes=10, in_channels=1, image_size=8, dropout=dropout)


def on_meta(name, **arguments):
    return models.skeleton(name, **arguments)


def unsettled(network):
    """The network in eval mode, its BatchNorm far from the identity, so that a wrong order of layers shows."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value, (low, high) in {
                "weight": (0.5, 2),
                "bias": (-1, 1),
                "running_mean": (-1, 1),
                "running_var": (0.5, 2),
            }.items():
                getattr(layer, value).data.uniform_(low, high)
    return network.eval()


# Counts

ROWS = printed.TABLE1 + printed.TABLE2
MATCHED = [row.network for row in ROWS if row.network.startswith("Match")]


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.network)
def test_counts_are_the_tables(row):
    assert models.params(row.network) == row.params
    assert models.forward_macs(row.network) == pytest.approx(row.forward_gmacs * 1e9, rel=0.005)


def test_matched_wide_resnets_without_their_ends_are_the_print():
    for row in printed.TABLE2:
        if row.network.startswith("MatchWide"):
            network = on_meta(row.network)
            middle = size(network) - size(network.stem) - size(network.head)
            assert math.floor(middle / 1e5) / 10 == row.params_printed


def test_other_readings_of_table1_do_not_meet_the_print():
    # In millions: the literal depth 112, and the three networks without third transition.
    with torch.device("meta"):
        counts = [size(DenseNet((units,) * 3, growth, 100)) / 1e6 for units, growth in [(18, 33), (14, 60), (12, 80), (12, 120)]]
    assert [f"{count:.2f}" for count in counts] == ["6.99", "15.19", "21.10", "47.28"]
    for row, count in zip(printed.TABLE1, counts, strict=True):
        assert abs(count / row.params_printed - 1) > 0.05 and abs(row.params / 1e6 / row.params_printed - 1) < 0.01


@pytest.mark.parametrize(
    "name, units, growth, third",
    [("DenseNetBC-10-3", 1, 3, False), ("DenseNetBC-45-5", 6, 5, False), ("DenseNetBC-22-7-t3", 3, 7, True)],
)
def test_densenet_params_by_hand(name, units, growth, third):
    channels, total = 2 * growth, 3 * 9 * 2 * growth
    for block in range(3):
        for _ in range(units):
            total += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 4 * growth * 9 * growth
            channels += growth
        if block < 2 or third:
            total += 2 * channels + channels * (channels // 2)  # odd counts halve by floor
            channels //= 2
    assert models.params(name, classes=10) == total + 2 * channels + 10 * channels + 10


def test_macs_by_hand():
    # DenseNetBC-10-1, 1x8x8 image: stem 9 x 2; a unit on c = 2, 1, 1 channels 4 c + 36; transitions 3 -> 1, 2 -> 1.
    by_hand = 64 * (9 * 2 + 4 * 2 + 36 + 3 * 1) + 16 * (4 * 1 + 36 + 2 * 1) + 4 * (4 * 1 + 36) + 2 * 10
    assert models.forward_macs("DenseNetBC-10-1", image_size=8, in_channels=1, classes=10) == by_hand


def test_counting_takes_no_memory_and_draws_nothing(monkeypatch):
    monkeypatch.setattr(nn.Module, "to_empty", None)
    state = torch.get_rng_state()
    assert models.params("WideResNet-28-20") == 145930804
    assert torch.equal(state, torch.get_rng_state())


# What the networks compute


def test_dense_unit_appends_its_growth():
    unit, x = unsettled(DenseUnit(6, growth=3)), torch.randn(2, 6, 5, 5)
    new = F.conv2d(F.relu(unit.norm1(x)), unit.conv1.weight)
    assert new.shape[1] == 4 * 3
    new = F.conv2d(F.relu(unit.norm2(new)), unit.conv2.weight, padding=1)
    assert torch.equal(unit(x), torch.cat([x, new], 1))


@pytest.mark.parametrize("third", [False, True])
def test_densenet_is_stem_blocks_transitions_head(third):
    net, x = unsettled(DenseNet((2, 2, 2), 3, classes=5, final_transition=third)), torch.randn(2, 3, 8, 8)
    logits = net(x)
    x = F.conv2d(x, net.stem.weight, padding=1)
    for number in range(3):
        for unit in net.blocks[number]:
            x = unit(x)
        if number < 2 or third:
            norm, _, conv = net.transitions[number]
            x = F.conv2d(F.relu(norm(x)), conv.weight)
        if number < 2:
            x = F.avg_pool2d(x, 2)
    assert x.shape[1:] == (6 if third else 12, 2, 2)  # a block takes 6 and gives 6 + 2 x 3, a transition halves
    x = F.relu(net.head.norm(x)).mean((2, 3))
    assert torch.allclose(logits, F.linear(x, net.head.classifier.weight, net.head.classifier.bias), atol=1e-6)


@pytest.mark.parametrize("channels, width, stride", [(8, 8, 1), (4, 8, 1), (8, 8, 2)])
def test_residual_units(channels, width, stride):
    x = torch.randn(2, channels, 8, 8)
    basic, narrow = unsettled(BasicUnit(channels, width, stride)), unsettled(BottleneckUnit(channels, width, stride))
    for unit in (basic, narrow):
        active = F.relu(unit.norm1(x))
        if unit is basic:
            new = F.conv2d(active, unit.conv1.weight, stride=stride, padding=1)
            new = F.conv2d(F.relu(unit.norm2(new)), unit.conv2.weight, padding=1)
        else:
            new = F.conv2d(active, unit.conv1.weight, stride=stride)
            assert new.shape[1] == width // 4
            new = F.conv2d(F.relu(unit.norm2(new)), unit.conv2.weight, padding=1)
            new = F.conv2d(F.relu(unit.norm3(new)), unit.conv3.weight)
        if channels == width and stride == 1:  # the identity: no weights, and not the activated input
            assert unit.shortcut is None
            assert torch.allclose(unit(x), x + new, atol=1e-5)
        else:
            assert torch.allclose(unit(x), F.conv2d(active, unit.shortcut.weight, stride=stride) + new, atol=1e-5)


def test_wide_resnet_widths_and_depth():
    net = on_meta("WideResNet-28-10")
    assert net.stem.out_channels == 16
    assert [stage[-1].conv2.out_channels for stage in net.blocks] == [160, 320, 640]
    assert [stage[0].conv1.stride for stage in net.blocks] == [(1, 1), (2, 2), (2, 2)]
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(convolutions) == 28 - 3  # the depth also counts the three 1x1 shortcuts


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_gradients(name):
    torch.manual_seed(0)
    net = small(name).train()
    logits = net(torch.randn(4, 1, 8, 8))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["DenseNetBC-10-4", "WideResNet-10-1", "MatchPreResNet-1-1@DenseNetBC-10-4"])
def test_any_classes_channels_and_image_size(name):
    for classes, channels, size in [(2, 1, 4), (7, 4, 20), (100, 3, 32)]:
        net = models.build(name, classes=classes, in_channels=channels, image_size=size).eval()
        assert net(torch.randn(1, channels, size, size)).shape == (1, classes)


# Initialisation


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_initialisation(name):
    def drawn(seed):
        torch.manual_seed(seed)
        return small(name).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key in first if first[key].dim() > 1]
    assert weights and not any(torch.equal(first[key], other[key]) for key in weights)


def test_initial_values():
    torch.manual_seed(0)
    net = small("WideResNet-10-4")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            spread = 4 / math.sqrt(2 * layer.weight.numel())  # four standard errors of a sample's deviation
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=spread)
        elif isinstance(layer, nn.BatchNorm2d):
            values = (layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.num_batches_tracked)
            assert [set(value.flatten().tolist()) for value in values] == [{1}, {0}, {0}, {1}, {0}]
        elif isinstance(layer, nn.Linear):
            assert not layer.bias.any() and layer.weight.abs().max() <= 1 / math.sqrt(layer.in_features)


def test_dropout_is_for_wide_residual_units_in_training():
    x = torch.randn(4, 1, 8, 8)
    for name in ("WideResNet-10-1", "MatchWideResNet-1-1@DenseNetBC-10-4"):
        net = small(name, dropout=0.5)
        assert not torch.equal(net(x), net(x))
        assert torch.equal(net.eval()(x), net(x))
        plain = small(name).train()
        assert torch.equal(plain(x), plain(x))
    dense = small("DenseNetBC-10-4", dropout=0.5).train()
    assert torch.equal(dense(x), dense(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_is_torchs_whatever_the_memory_format(layout, rate):
    """Mask and gradient are those that torch draws for a contiguous tensor."""
    x = torch.randn(4, 6, 5, 5)
    told = []
    for own, inputs in ((True, x.clone(memory_format=layout)), (False, x)):
        torch.manual_seed(0)
        inputs = inputs.requires_grad_()
        kept = Dropout(rate)(inputs) if own else F.dropout(inputs, rate)
        kept.square().sum().backward()
        told += [kept.detach(), inputs.grad, torch.rand(3)]
    assert all(map(torch.equal, told[:3], told[3:]))


# Matched students


@pytest.mark.parametrize("name", MATCHED)
def test_students_keep_the_boundaries_of_90_60(name):
    # Section 2.2 and the teacher's own widths: what its blocks take, and what its 1x1 convolutions give.
    net, taken = on_meta(name), []
    for block in net.blocks:
        block.register_forward_hook(lambda _, given, __: taken.append(given[0].shape[1]))
    net.eval()(torch.empty(1, 3, 8, 8, device="meta"))
    assert taken == [120, 480, 660]
    assert [closing[2].out_channels for closing in net.transitions] == [480, 660, 750]
    assert net.head.classifier.in_features == 750


def test_a_student_fits_any_teacher():
    student = on_meta("MatchWideResNet-2-0.5@DenseNetBC-40-12")
    assert [stage[0].conv1.weight.shape[:2] for stage in student.blocks] == [(24, 24), (30, 48), (66, 60)]
    assert [len(stage) for stage in student.blocks] == [2, 2, 2]
    assert student.stem.out_channels == 24 and student.head.classifier.in_features == 132


@pytest.mark.parametrize("teacher, units", [("DenseNetBC-90-60", 14), ("DenseNetBC-40-12", 6), ("DenseNetBC-22-5-t3", 3)])
def test_match_densenet_with_the_teachers_numbers_is_the_teacher(teacher, units):
    student, teacher = on_meta(f"MatchDenseNet-{units}-1-2@{teacher}"), on_meta(teacher)
    assert {key: value.shape for key, value in student.state_dict().items()} == {
        key: value.shape for key, value in teacher.state_dict().items()
    }


def test_match_densenet_squeezes_and_grows():
    net = on_meta("MatchDenseNet-14-0.5-1")  # 0.5 x (120, 480, 660) in; (480, 660, 750) out of 14 units of growth 30
    assert [block[0][2].weight.shape[:2] for block in net.blocks] == [(60, 120), (240, 480), (330, 660)]
    assert [block[-1].conv2.out_channels for block in net.blocks] == [30, 30, 30]
    assert [closing[0].num_features for closing in net.transitions] == [480, 660, 750]


@pytest.mark.parametrize(
    "name",
    [
        "MatchWideResNet-1-1@DenseNetBC-10-4",
        "MatchPreResNet-1-1@DenseNetBC-10-4",
        "MatchDenseNet-1-0.5-2@DenseNetBC-10-4",
    ],
)
def test_shared_ends_are_copied_and_do_not_move(name):
    torch.manual_seed(0)
    teacher, student = small("DenseNetBC-10-4"), small(name)
    student = models.share_ends(student, teacher).train()
    ends = {"stem.weight", "head.classifier.weight", "head.classifier.bias"}
    before = {key: value.clone() for key, value in student.state_dict().items()}
    teachers = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert {key for key, parameter in student.named_parameters() if not parameter.requires_grad} == ends

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(student(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
        optimizer.step()
    moved = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(before) - ends
    assert all(torch.equal(before[key], teachers[key]) for key in ends)
    assert all(torch.equal(value, teachers[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_ends_that_do_not_fit_are_refused_before_anything_is_copied():
    teacher = small("DenseNetBC-10-4")
    student = models.build("MatchWideResNet-1-1@DenseNetBC-10-4", classes=9, in_channels=1, image_size=8)
    stem = student.stem.weight.clone()
    with pytest.raises(ValueError, match=r"student's classifier .*\[9, 9\].* teacher's \[10, 9\]"):
        models.share_ends(student, teacher)
    assert torch.equal(stem, student.stem.weight) and student.stem.weight.requires_grad


# Bad arguments


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (dict(image_size=30), "image_size must divide by 4"),
        (dict(image_size=0), "image_size must be an integer from 1"),
        (dict(image_size="32"), "got '32'"),
        (dict(classes=0), "classes must be an integer"),
        (dict(classes=True), "got True"),
        (dict(classes=10**9), "from 1 to 100000"),
        (dict(classes=10.0), "got 10.0"),
        (dict(in_channels=-1), "got -1"),
        (dict(dropout=1.0), "less than 1"),
        (dict(dropout=-0.1), "dropout"),
        (dict(dropout=float("nan")), "got nan"),
        (dict(dropout="0.3"), "dropout"),
    ],
)
def test_bad_arguments_take_one_sentence_and_no_memory(monkeypatch, arguments, expected):
    monkeypatch.setattr(nn.Module, "to_empty", None)
    with pytest.raises(ValueError, match=expected):
        models.build("DenseNetBC-10-4", **arguments)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("DenseNet-90-60", "did you mean 'DenseNetBC-90-60'?"),
        ("WideResNet-29-10", "6 n + 4"),
        ("DenseNetBC-400-1000", "more than the 1,000 M"),
        ("WideResNet-28-100", "more than the 1,000 M"),
        ("MatchWideResNet-2-0.1@DenseNetBC-10-1", "take a larger ratio"),
    ],
)
def test_bad_names_take_no_memory(monkeypatch, name, expected):
    monkeypatch.setattr(nn.Module, "to_empty", None)  # what gives a network its memory
    with pytest.raises(ValueError) as problem:
        models.build(name)
    assert expected in str(problem.value) and "\n" not in str(problem.value)
