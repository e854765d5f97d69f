"""The static picture inside each explorer: its first state, for where no script runs."""

import base64
import html

import matplotlib.pyplot as plt
import numpy as np

from banlib.figures import show, style


def colors(names):
    """{name: "#rrggbb"}, which a model keeps in every figure."""
    return {name: style.color("Ens*3" if name == "ensemble" else name) for name in names}


def bars(alt, panels, shades, xlabel, limit=None, pixels=None):
    """An <img> of horizontal bars, {title: {label: value}}; several values: a mean with dots.

    shades: {label or title: color}; pixels: an image to show above them.
    """
    sizes = [1.1] * (pixels is not None) + [0.6 + 0.22 * len(panel) for panel in panels.values()]
    look = {"figsize": (4.2, sum(sizes)), "height_ratios": sizes, "layout": "constrained"}
    figure, grid = plt.subplots(len(sizes), squeeze=False, **look)
    if pixels is not None:
        style.show(grid[0, 0], pixels)
    for axis, (title, panel) in zip(grid[-len(panels) :, 0], panels.items(), strict=True):
        for name, values in panel.items():
            axis.barh(name, np.mean(values), color=shades.get(name, shades.get(title, style.GRAY)))
            if np.ndim(values):
                axis.plot(values, [name] * len(values), ".", color=style.INK, alpha=0.4, zorder=3)
        axis.set(title=title, xlim=limit)
        axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    return picture(figure, alt)


def picture(figure, alt):
    """A figure, which is closed, as an <img>."""
    source = base64.b64encode(show.svg(figure)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{source}">'
