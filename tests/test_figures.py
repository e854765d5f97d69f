"""Figures: each draws what it is given, for one seed as for several, and says where it comes from."""

import io
import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from banlib.figures import ensembles, generations, style, teacher
from banlib.paper import statistics
from banlib.runs.recipe import PROFILES

WHERE = "DenseNetBC-16-8 on digits, seeds 0-3; a processor, fp32; commit abcdef1"
NAMES = ["Teacher", "BAN-1", "BAN-2", "BAN-3"]


@pytest.fixture(autouse=True)
def look():
    with warnings.catch_warnings(), plt.style.context({}):
        warnings.simplefilter("error")
        style.style()
        plt.rcParams["figure.constrained_layout.use"] = False  # slow, and nothing here looks at places
        yield
    assert plt.get_fignums() == [], "an open figure is shown twice by a notebook"


def drawn(figure):
    """The texts of a figure, after it was drawn."""
    figure.savefig(io.BytesIO(), dpi=40)
    assert figure.get_facecolor() == (1, 1, 1, 1)
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return " ".join(" ".join(texts).split())


def random(*shape):
    return np.random.default_rng(0).random(shape)


def errors(seeds):
    models = {name: 1 for name in NAMES} | {"BAN-4": 1, "Ens*2": 2, "Ens*3": 3}
    rows = [
        {"seed": seed, "name": name, "generation": place, "members": members, "images": 500}
        for seed in range(seeds)
        for place, (name, members) in enumerate(models.items())
    ]
    return pd.DataFrame(rows).assign(error=5 + random(len(rows)))


def curves(seeds, names):
    rows = list(itertools.product(range(seeds), names, range(1, 7)))
    frame = pd.DataFrame(rows, columns=["seed", "name", "epoch"])
    loss = 1 + random(len(rows))
    return frame.assign(train_loss=loss, test_error=np.where(frame["epoch"] % 2, np.nan, 9 * loss))


def subsets(seeds, names=NAMES):
    groups = [group for size in range(1, len(names) + 1) for group in itertools.combinations(names, size)]
    rows = [{"seed": seed, "members": " + ".join(group), "size": len(group)} for seed in range(seeds) for group in groups]
    return pd.DataFrame(rows).assign(error=5 + random(len(rows)))


@pytest.mark.parametrize("seeds", [1, 4])
def test_generations(seeds):
    frame = errors(seeds)
    text = drawn(generations.error_by_generation(frame, "DenseNetBC-90-60", WHERE))
    assert "90-60" in text and "BAN-4" in text and WHERE in text
    assert ("one seed: no interval" in text) == (seeds == 1)
    assert "better in" in drawn(generations.paired_differences(statistics.paired(frame), WHERE))
    text = drawn(generations.training_curves(curves(seeds, NAMES), WHERE))
    assert all(name in text for name in NAMES) and "training loss, nats" in text
    assert "Labels are learned" in drawn(generations.training_curves(curves(seeds, NAMES[:1]), WHERE))
    alone = statistics.paired(frame[frame["name"] == "Teacher"])
    assert WHERE in drawn(generations.paired_differences(alone, WHERE))


def test_teacher_against_student_counts_the_winners():
    points = pd.concat([generations.paper_points(), generations.measured_points(errors(3), "measured, digits")])
    assert list(points.groupby("source", sort=False).size()) == [11, 12]
    assert not points.isna().any(axis=None)
    text = drawn(generations.teacher_against_student(points, WHERE))
    assert "paper, CIFAR-100: 11 of 11 students win" in text, "table 1 has eleven BANs, all below their teacher"


def test_drawings():
    assert "BAN-3" in drawn(generations.lineage_diagram(20))
    assert "out of the block" in drawn(teacher.dense_block_diagram(16, 8, 4))
    assert "falls 3 times" in drawn(teacher.schedule(PROFILES["cifar100"].recipe))
    matrix = torch.tensor([[100.0, 94.0], [94.0, 100.0]])
    assert "differ on 6.0 % of images" in drawn(generations.agreement(matrix, NAMES[:2], WHERE))
    assert "differ on 0.0 %" in drawn(generations.agreement(torch.tensor([[100.0]]), NAMES[:1], WHERE))
    bins = ([20.0, 90.0], [30.0, 95.0], [0.2, 0.8])
    assert "share of test images" in drawn(teacher.reliability({"Teacher": bins, "all together": bins}, WHERE))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_probabilities(channels):
    pictures = list(random(4, channels, 8, 8))
    assert "third" in drawn(style.images(pictures, ["first", "second", "third", "fourth"], columns=3, title="Some"))
    assert drawn(style.images([], [], 5, "None")) == "None"
    rows = {"Teacher": random(12), "BAN-1": random(12)}
    text = drawn(style.probabilities(rows, range(12), "An image", pictures[0]))
    assert "An image" in text and "BAN-1" in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_ensembles(seeds):
    frame = subsets(seeds)
    assert "Teacher + BAN-1 + BAN-2 + BAN-3" in drawn(ensembles.ensemble_sizes(frame, WHERE))
    assert "averaged" in drawn(ensembles.one_ensemble(frame, "BAN-1 + BAN-2", WHERE))
    assert "averaged" not in drawn(ensembles.one_ensemble(frame, "BAN-1", WHERE))
    assert WHERE in drawn(ensembles.ensemble_sizes(subsets(seeds, ["Teacher"]), WHERE))
    both = pd.concat([frame.assign(kind="one lineage"), frame.assign(kind="unrelated teachers")])
    assert "unrelated teachers" in drawn(ensembles.lineage_against_teachers(both, WHERE))
