"""Born-again ensembles (eq. 4) and what is measured on test probabilities.

Probabilities are float [images, classes], labels int64 [images]; errors are in %, the rest in nats.
"""

import torch

SMALLEST = 2.0**-24  # the smallest float16 above zero: a stored probability of 0 means "below this"


def average(probabilities):
    """Eq. 4: the mean of the members' probabilities, not of their logits, in float32."""
    return torch.stack([member.float() for member in probabilities]).mean(0)


def members(gens):
    """Which generations form the paper's ensembles of a lineage (caption of table 1).

    Without a BAN-3, as for 80-120, the teacher joins Ens*3.
    """
    if gens < 2:
        return {}
    return {"Ens*2": (1, 2), "Ens*3": (1, 2, 3) if gens >= 3 else (0, 1, 2)}


def error(probabilities, labels):
    """Share of images whose most probable class is wrong, %."""
    return 100 * (probabilities.argmax(1) != labels).double().mean().item()


def nll(probabilities, labels):
    """Mean negative log-likelihood of the labels, nats."""
    likelihood = probabilities.double().gather(1, labels[:, None]).clamp_min(SMALLEST)
    return -likelihood.log().mean().item()


def calibration_error(probabilities, labels, bins=15):
    """Expected calibration error, %: how far apart confidence and accuracy are.

    The mean over images of |confidence - accuracy| of their bins, which divide 0..1 equally; a bin
    has its lower edge, and confidence 1 has a bin of its own.
    """
    confidence, predicted = probabilities.float().max(1)
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)
    gaps = confidence.double() - (predicted == labels).double()
    by_bin = torch.bucketize(confidence, edges, right=True).bincount(gaps)  # sums over images
    return 100 * by_bin.abs().sum().item() / len(labels)


def reliability(probabilities, labels, bins=10):
    """(confidence %, accuracy %, share of images): lists over the bins that hold an image."""
    confidence, predicted = probabilities.float().max(1)
    right, place = (predicted == labels).double(), (confidence * bins).long().clamp_max(bins - 1)
    chosen = [place == number for number in place.unique()]
    means = ([100 * of[one].mean().item() for one in chosen] for of in (confidence, right))
    return (*means, [one.double().mean().item() for one in chosen])


def entropy(probabilities):
    """How much each prediction doubts, nats: [n, classes] -> [n]."""
    likelihood = probabilities.float().clamp_min(SMALLEST)
    return -(likelihood * likelihood.log()).sum(-1)


def agreement(probabilities):
    """[members, members]: the share of images, %, on which two members predict the same class."""
    predictions = torch.stack([member.argmax(1) for member in probabilities])
    return 100 * (predictions[:, None] == predictions[None]).double().mean(2)
