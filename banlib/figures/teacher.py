"""Chapter 1: a dense block, the schedule, calibration."""

import numpy as np

from banlib.figures.style import GRAY, PALETTE, color, panels, source


def dense_block_diagram(channels, growth, units):
    """How wide the input of each dense unit is: every unit reads all channels made before it."""
    figure, (axis,) = panels(1, 7.2, 0.9 + 0.42 * (units + 1))
    names = [*(f"into unit {unit + 1}" for unit in range(units)), "out of the block"]
    axis.barh(names, channels, color=GRAY, height=0.62)
    for unit in range(units):
        left = channels + unit * growth
        axis.barh(names[unit + 1 :], growth, left=left, color=PALETTE[unit % 8], height=0.62)
    axis.invert_yaxis()
    title = f"Each unit appends {growth} channels to all that came before"
    axis.set(xlabel="channels", title=title)
    return source(figure)


def schedule(recipe):
    """The learning rate over epochs."""
    figure, (axis,) = panels(1, 7.2, 2.6)
    epochs = range(1, recipe.epochs + 1)
    axis.step(epochs, [recipe.lr_at(epoch) for epoch in epochs], where="mid")
    title = f"The rate falls {len(recipe.lr_milestones)} times"
    axis.set(xlabel="epoch", ylabel="learning rate", yscale="log", title=title)
    return source(figure)


def reliability(tables, where):
    """Accuracy against confidence, {name: `ensemble.reliability`}, with the diagonal."""
    figure, axes = panels(len(tables), 3.6 * len(tables), 3.7, sharey=True)
    for axis, (name, (confidence, accuracy, share)) in zip(axes, tables.items(), strict=True):
        axis.plot((0, 100), (0, 100), color=GRAY, linewidth=1)
        area = 20 + 400 * np.asarray(share)
        axis.scatter(confidence, accuracy, s=area, color=color(name), alpha=0.8)
        axis.set(title=name, xlabel="confidence, %", xlim=(0, 102), ylim=(0, 102), aspect="equal")
    axes[0].set_ylabel("accuracy, %")
    return source(figure, f"{where}; area: share of test images")
