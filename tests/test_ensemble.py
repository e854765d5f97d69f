"""Ensembles and the metrics of test probabilities, against numbers worked out by hand."""

import math

import pytest
import torch

from banlib import ensemble


def rows(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64)


def test_an_ensemble_averages_probabilities_not_logits():
    """One member very sure of class 0, three that lean to class 1: the mean logit is 0's, the mean probability 1's."""
    members = [rows([0.9999, 0.0001]), *3 * [rows([0.3, 0.7])]]
    logits = sum(math.log(member[0, 0] / member[0, 1]) for member in members) / 4
    mean = ensemble.average(members)
    assert logits > 0 and mean.argmax(1).item() == 1, "here the two ways of averaging disagree"
    assert mean[0].tolist() == pytest.approx([(0.9999 + 0.9) / 4, (0.0001 + 2.1) / 4])


def test_stored_float16_probabilities_are_averaged_in_float32():
    """In float16 the sum of a thousand would stop growing at steps of 1 / 1024."""
    mean = ensemble.average([torch.tensor([[0.1]], dtype=torch.float16)] * 1000)
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(torch.tensor(0.1).half().item(), rel=1e-5)


@pytest.mark.parametrize("gens, members", [
    (0, {}),
    (1, {}),
    (2, {"Ens*2": (1, 2), "Ens*3": (0, 1, 2)}),  # as the paper's 80-120, which has no BAN-3
    (3, {"Ens*2": (1, 2), "Ens*3": (1, 2, 3)}),
    (7, {"Ens*2": (1, 2), "Ens*3": (1, 2, 3)}),
])  # fmt: skip
def test_members_are_those_of_the_papers_caption(gens, members):
    assert ensemble.members(gens) == members


LABELS = torch.tensor([0, 1, 1, 2])
FOUR = rows([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5])  # right, wrong, right, right


def test_error_is_the_share_of_wrong_images():
    assert ensemble.error(FOUR, LABELS) == 25


def test_likelihood_is_the_mean_over_images_in_nats():
    by_hand = -(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.5)) / 4
    assert ensemble.nll(FOUR, LABELS) == pytest.approx(by_hand, rel=1e-12)


def test_a_stored_probability_of_zero_counts_as_the_smallest_float16():
    certain_and_wrong = torch.tensor([[1.0, 0.0]], dtype=torch.float16)
    assert ensemble.nll(certain_and_wrong, torch.tensor([1])) == pytest.approx(24 * math.log(2))


def test_calibration_error_weighs_each_bins_gap_by_its_images():
    """15 bins: confidences 0.7, 0.8 and twice 0.5 lie in three. Gaps: |0.7 - 1|, |0.8 - 1|, |0.5 - 1/2|, one of two."""
    by_hand = 100 * (1 / 4 * 0.3 + 1 / 4 * 0.2 + 2 / 4 * 0)
    assert ensemble.calibration_error(FOUR, LABELS) == pytest.approx(by_hand, abs=1e-4)
    one_bin = 100 * abs((0.7 + 0.5 + 0.8 + 0.5) / 4 - 3 / 4)
    assert ensemble.calibration_error(FOUR, LABELS, bins=1) == pytest.approx(one_bin, abs=1e-4)


def loop_over_bins(rows, labels, bins):
    """Expected calibration error in %, one image at a time (Guo et al. 2017, eq. 3): bins with their lower edges."""
    inside = {}
    for row, label in zip(rows, labels, strict=True):
        place = max(number for number in range(bins + 1) if max(row) >= number / bins)
        inside.setdefault(place, []).append((max(row), row.index(max(row)) == label))
    gap = 0.0
    for images in inside.values():
        confidence, accuracy = (sum(values) / len(images) for values in zip(*images, strict=True))
        gap += len(images) / len(rows) * abs(confidence - accuracy)
    return 100 * gap


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_calibration_error_equals_a_loop_over_bins(bins, dtype):
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 10, generator=generator)).softmax(1).to(dtype)
    labels = torch.randint(10, (500,), generator=generator)
    labels[::2] = probabilities[::2].argmax(1)  # half are right: too few of the sure ones, too many of the others
    expected = loop_over_bins(probabilities.float().tolist(), labels.tolist(), bins)
    assert ensemble.calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-4)
    assert bins == 1 or expected > 2 + loop_over_bins(probabilities.float().tolist(), labels.tolist(), 1)


def test_certain_predictions_are_a_bin_of_their_own():
    """At 1 a wrong one, at 0.95 a right one: gaps of 1 and 0.05. In one bin they would be 1.95 - 1."""
    probabilities, labels = rows([1.0, 0.0], [0.95, 0.05]), torch.tensor([1, 0])
    assert ensemble.calibration_error(probabilities, labels, bins=10) == pytest.approx(100 * 1.05 / 2, abs=1e-4)
    assert loop_over_bins(probabilities.tolist(), labels.tolist(), 10) == pytest.approx(100 * 1.05 / 2)


def test_agreement_is_the_share_of_images_two_members_class_alike():
    generator = torch.Generator().manual_seed(1)
    members = [torch.rand(40, 3, generator=generator) for _ in range(4)]
    matrix = ensemble.agreement(members)
    assert torch.equal(matrix, matrix.T) and matrix.diagonal().tolist() == [100] * 4
    for one in range(4):
        for other in range(4):
            same = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(members[one], members[other], strict=True))
            assert matrix[one, other].item() == pytest.approx(100 * same / 40)


def test_reliability_is_confidence_accuracy_and_share_by_bin():
    """Ten bins: 0.5 twice (one right), 0.7 and 0.8 once each (right); empty bins are left out."""
    confidence, accuracy, share = ensemble.reliability(FOUR, LABELS)
    assert confidence == pytest.approx([50, 70, 80], abs=1e-4) and accuracy == [50, 100, 100]
    assert share == [0.5, 0.25, 0.25]


def test_entropy_follows_its_formula():
    even, sure = torch.full((1, 4), 0.25), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert ensemble.entropy(even).item() == pytest.approx(math.log(4))
    assert ensemble.entropy(sure).item() == pytest.approx(0, abs=1e-5)
