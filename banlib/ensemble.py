"""Born-again ensembles (eq. 4) and what is measured on test probabilities.

Probabilities are [images, classes], labels int64 [images]; errors are in percent, likelihoods in nats.
"""

import torch
from torchmetrics.functional.classification import multiclass_calibration_error

SMALLEST = 2.0**-24  # the smallest float16 above zero: a stored probability of 0 means "below this"


def average(probabilities):
    """Eq. 4: the mean of the members' probabilities, not of their logits. A list of [n, classes] -> float32."""
    return torch.stack([member.float() for member in probabilities]).mean(0)


def members(gens):
    """Which generations form the paper's ensembles of a lineage (caption of table 1).

    Ens*2 is BAN-1 and BAN-2, Ens*3 is BAN-1 to BAN-3; without a BAN-3, as for 80-120, the teacher joins Ens*3.
    """
    ensembles = {}
    if gens >= 2:
        ensembles["Ens*2"] = (1, 2)
        ensembles["Ens*3"] = (1, 2, 3) if gens >= 3 else (0, 1, 2)
    return ensembles


def error(probabilities, labels):
    """Share of images whose most probable class is wrong, %."""
    return 100 * (probabilities.argmax(1) != labels).double().mean().item()


def nll(probabilities, labels):
    """Mean negative log-likelihood of the labels, nats."""
    likelihood = probabilities.double().gather(1, labels[:, None]).clamp_min(SMALLEST)
    return -likelihood.log().mean().item()


def calibration_error(probabilities, labels, bins=15):
    """Expected calibration error, %: how far confidence and accuracy lie apart, over equal bins of confidence."""
    probabilities = probabilities.float()
    return 100 * multiclass_calibration_error(
        probabilities, labels, num_classes=probabilities.shape[1], n_bins=bins, norm="l1"
    ).item()


def entropy(probabilities):
    """How much each prediction doubts, nats: [n, classes] -> [n]."""
    likelihood = probabilities.float().clamp_min(SMALLEST)
    return -(likelihood * likelihood.log()).sum(-1)


def soften(probabilities, temperature):
    """The probabilities that the same logits give at another temperature: [..., classes]."""
    return (probabilities.float().clamp_min(SMALLEST).log() / temperature).softmax(-1)


def agreement(probabilities):
    """[members, members]: the share of images, in %, on which two members predict the same class."""
    predictions = torch.stack([member.argmax(1) for member in probabilities])
    return 100 * (predictions[:, None] == predictions[None]).double().mean(2)


def reliability(probabilities, labels, bins=10):
    """(mean confidence %, accuracy %, share of images) of each equal bin of confidence that holds an image."""
    confidence, predicted = probabilities.float().max(1)
    right, chosen = (predicted == labels).double(), (confidence * bins).long().clamp_max(bins - 1)
    table = [
        (100 * confidence[chosen == place].mean().item(), 100 * right[chosen == place].mean().item(),
         (chosen == place).double().mean().item())
        for place in range(bins)
        if (chosen == place).any()
    ]  # fmt: skip
    return tuple(list(column) for column in zip(*table))
