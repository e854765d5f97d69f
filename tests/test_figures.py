"""Figures: each draws what it is given, for one seed as for several, and says where it comes from."""

import io
import itertools
import types
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from banlib.figures import ensembles, generations, show, style, teacher
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
    assert to_hex(figure.get_facecolor()) == style.PAPER
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


def controls(seeds):
    runs = {seed: types.SimpleNamespace(error=7.0, labels=torch.zeros(500)) for seed in range(seeds)}
    return {"labels x2": runs, "teacher": runs}


def all_drawn(figures):
    """The same of several panels; each fits a phone, and no type is smaller than 11 pixels."""
    for figure in figures:
        assert figure.get_figwidth() * 96 <= 400
        texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
        assert min(text.get_fontsize() for text in texts) * 96 / 72 >= 11
    return " ".join(map(drawn, figures))


@pytest.mark.parametrize("seeds", [1, 4])
def test_generations(seeds):
    frame = errors(seeds)
    ours, paper = generations.error_by_generation(frame, controls(seeds), "DenseNetBC-90-60", "Measured, digits")
    assert "Measured, digits" in drawn(ours) and "labels x2" in drawn(ours), "what a reader changes comes first"
    assert "90-60" in drawn(paper)
    all_drawn([ours, paper])
    assert "better in" in all_drawn([generations.paired_differences(statistics.paired(frame))])
    text = all_drawn(generations.training_curves(curves(seeds, NAMES)))
    assert all(name in text for name in NAMES) and "training loss, nats" in text and "Two loss terms" in text
    assert "Two loss terms" not in all_drawn(generations.training_curves(curves(seeds, NAMES[:1])))
    alone = statistics.paired(frame[frame["name"] == "Teacher"])
    assert "points" in drawn(generations.paired_differences(alone))


def test_teacher_against_student_counts_the_winners():
    points = pd.concat([generations.paper_points(), generations.measured_points(errors(3), "measured, digits")])
    assert list(points.groupby("source", sort=False).size()) == [11, 12]
    assert not points.isna().any(axis=None)
    paper, ours = generations.teacher_against_student(points)
    text = all_drawn([paper, ours])
    assert "Paper, CIFAR-100: 11 of 11 students err less" in text, "table 1 has eleven BANs, all below their teacher"
    fills = [{line.get_markerfacecolor() for line in figure.axes[0].lines[1:]} for figure in (paper, ours)]
    assert fills[0] == {style.PAPER} and style.PAPER not in fills[1], "the paper's markers are hollow"


def test_a_role_has_one_color_and_a_color_one_role():
    roles = {name: style.color(name) for name in ("Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "labels x2")}
    assert len(set(roles.values())) == len(roles)
    assert style.color("Ens*3") == style.color("averaged") == roles["Ens*2"]
    assert {style.color("cwtm"), style.color("BAN-7")} == {style.GRAY, style.INK}, "what has no role is neutral"


def test_a_readers_own_configuration_changes_no_figure():
    expected = show.svg(teacher.schedule(PROFILES["cifar100"].recipe))
    plt.rcParams.update({"axes.grid": True, "font.family": "serif", "lines.linewidth": 9, "svg.fonttype": "path"})
    style.style()
    plt.rcParams["figure.constrained_layout.use"] = False
    assert show.svg(teacher.schedule(PROFILES["cifar100"].recipe)) == expected


def test_labels_do_not_touch():
    assert style.spread([1.0, 3.0, 1.1], 0.5) == [1.0, 3.0, 1.5]
    figure = generations.training_curves(curves(3, NAMES).assign(train_loss=0.1, test_error=5.0))[0]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts if text.get_text() in NAMES]
    assert len(boxes) == len(NAMES)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_drawings():
    assert "BAN-3" in all_drawn([generations.lineage_diagram(20)])
    assert "out of the block" in all_drawn([teacher.dense_block_diagram(16, 8, 4)])
    assert "falls 3 times" in all_drawn([teacher.schedule(PROFILES["cifar100"].recipe)])
    matrix = torch.tensor([[100.0, 94.0], [94.0, 100.0]])
    assert "differ on 6.00 % of images" in all_drawn([generations.agreement(matrix, NAMES[:2])])
    assert "differ on 0.00 %" in drawn(generations.agreement(torch.tensor([[100.0]]), NAMES[:1]))
    bins = ([20.0, 90.0], [30.0, 95.0], [0.2, 0.8])
    text = all_drawn(teacher.reliability({"Teacher": bins, "averaged": bins}))
    assert "Teacher" in text and "averaged" in text and "confidence, %" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_probabilities(channels):
    pictures = list(random(6, channels, 8, 8))
    figure = style.images(pictures, ["first", "second", "third", "fourth", "fifth", "sixth"], columns=6)
    assert "sixth" in all_drawn([figure]) and len(figure.axes) == 8, "two rows of four"
    assert drawn(style.images([], [], 5)) == ""
    rows = {"Teacher": random(12), "BAN-1": random(12)}
    figures = style.probabilities(rows, range(12), pictures[0])
    assert len(figures) == 3 and "BAN-1" in all_drawn(figures)


@pytest.mark.parametrize("seeds", [1, 3])
def test_ensembles(seeds):
    frame = subsets(seeds)
    assert "T+1+2+3" in all_drawn([ensembles.ensemble_sizes(frame)])
    assert "alone" in drawn(ensembles.ensemble_sizes(subsets(seeds, ["Teacher"])))
    both = pd.concat([frame.assign(kind="one lineage"), frame.assign(kind="unrelated labels x2", error=1.0)])
    text = all_drawn([ensembles.lineage_against_teachers(both)])
    assert "Lowest mean of 4: unrelated labels x2" in text
