"""Chapter 1: a dense block, the schedule, calibration."""

import numpy as np

from banlib.figures import style
from banlib.figures.style import GRAY, LIGHT, WIDE, color, panels, source


def dense_block_diagram(channels, growth, units):
    """How wide the input of each dense unit is: every unit reads all channels made before it."""
    figure, (axis,) = panels(1, WIDE, 0.9 + 0.36 * (units + 1))
    names = [*(f"into unit {unit + 1}" for unit in range(units)), "out of the block"]
    axis.barh(names, channels, color=GRAY, height=0.62)
    for unit in range(units):
        left = channels + unit * growth
        look = {"color": LIGHT, "height": 0.62, "edgecolor": style.PAPER, "linewidth": 1.5}
        axis.barh(names[unit + 1 :], growth, left=left, **look)
    axis.invert_yaxis()
    axis.set_xlabel("channels")
    style.title(axis, f"Each unit appends {growth} channels to all before it")
    return source(figure)


def schedule(recipe):
    """The learning rate over epochs."""
    figure, (axis,) = panels(1, WIDE, 2.2)
    epochs = range(1, recipe.epochs + 1)
    axis.step(epochs, [recipe.lr_at(epoch) for epoch in epochs], where="mid", color=style.INK)
    axis.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    axis.set_title(f"The rate falls {len(recipe.lr_milestones)} times")
    return source(figure)


def reliability(tables):
    """Accuracy against confidence, a panel for each {name: `ensemble.reliability`}."""
    figures = []
    for name, (confidence, accuracy, share) in tables.items():
        figure, (axis,) = panels(1, 3.0, 3.0)
        axis.plot((0, 100), (0, 100), color=GRAY, linewidth=1)
        area = 20 + 400 * np.asarray(share)
        axis.scatter(confidence, accuracy, s=area, color=color(name), alpha=0.8)
        axis.set(title=name, xlabel="confidence, %", ylabel="accuracy, %", aspect="equal")
        axis.set(xlim=(0, 108), ylim=(0, 108))
        figures.append(source(figure))
    return figures
