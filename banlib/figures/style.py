"""The book's look, and what its figures share. Bars and bands are 95 % t intervals over seeds.

Every figure is a panel of at most 3.5 inches, 336 pixels, so that a phone shows it at its size;
two stand side by side in a page's column. No type is smaller than `SMALL`, 11 pixels.
"""

import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from banlib.figures import INK, PAPER
from banlib.paper.numbers import number
from banlib.paper.statistics import CONTROL, interval

GRAY, LIGHT = "#7d7d7d", "#b5b5b5"  # the paper's values: gray and hollow
# Okabe and Ito's colors, each for one role and for nothing else.
ROLES = {"Teacher": "#0072b2", "BAN-1": "#e69f00", "BAN-2": "#009e73", "BAN-3": "#cc79a7"}
ROLES |= {"Ens*2": "#d55e00", "Ens*3": "#d55e00", "averaged": "#d55e00", CONTROL: "#56b4e9"}
ROLES |= {"label+teacher": ROLES["BAN-1"]}
ERROR, SMALL, WIDE = "test error, %", 8.5, 3.5  # SMALL in points, WIDE in inches
PLAIN = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # behind words that a line would cross
FONTS = ["DejaVu Sans", "Bitstream Vera Sans", "Verdana", "sans-serif"]  # of one width
SVG = {"svg.fonttype": "none", "svg.hashsalt": "banlib", "font.sans-serif": FONTS}


def style():
    """The look of every figure drawn from here on: `book.mplstyle`, whatever the reader has set."""
    matplotlib.rcdefaults()
    plt.style.use("banlib.figures.book")


def color(name):
    """The color that a model keeps in every figure; gray for what has no role."""
    return ROLES.get(name, INK if name.startswith("BAN-") else GRAY)


def panels(count, width, height, **options):
    """(figure, axes): a row of axes, sizes in inches."""
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False, **options)
    return figure, axes[0]


def source(figure):
    """The figure, closed, so that a cell shows it once."""
    plt.close(figure)
    return figure


def title(axis, text):
    """What a figure shows, over its whole width."""
    look = {"x": 0.02, "ha": "left", "fontsize": "medium", "fontweight": "bold"}
    axis.figure.suptitle(textwrap.fill(text, 40), **look)


def note(axis, text, point, offset=(8, 0), **look):
    """Words beside a point, so many typographic points away from it."""
    sides = {"ha": ("center", "left", "right")[np.sign(offset[0])], "fontsize": SMALL}
    sides["va"] = ("center", "bottom", "top")[np.sign(offset[1])]
    axis.annotate(text, point, offset, textcoords="offset points", **(sides | look))


def spread(values, gap):
    """The values, moved up as far as it takes for a gap between neighbors."""
    places, last = {}, -np.inf
    for place in np.argsort(values):
        places[place] = last = max(values[place], last + gap)
    return [places[place] for place in range(len(values))]


def label_ends(axis, x, ends):
    """Names beside the right ends of lines, {name: value}, none touching another."""
    low, high = axis.get_ylim()
    points = 0.75 * 72 * axis.figure.get_figheight()  # about the height of the axes
    places = spread(list(ends.values()), 1.35 * SMALL * (high - low) / points)
    for (name, value), place in zip(ends.items(), places, strict=True):
        line = {"arrowstyle": "-", "color": color(name), "shrinkA": 0, "shrinkB": 0}
        look = {"va": "center", "fontsize": SMALL, "arrowprops": line, "annotation_clip": False}
        axis.annotate(name, (x, value), (1.08 * x, place), **look)
    axis.set_xlim(right=x)


def limits(values):
    """The ends of a 95 % interval, for seaborn."""
    mean, half = interval(values)
    return mean - half, mean + half


def means(axis, frame, name, value, flat=False):
    """Of each name the mean with its interval, and seeds as dots; flat: values run along x."""
    average = frame.groupby(name, sort=False)[value].mean()
    look = {"x": value if flat else name, "y": name if flat else value, "hue": name, "ax": axis}
    look |= {"palette": {each: color(each) for each in average.index}, "legend": False}
    sns.stripplot(frame, jitter=False, alpha=0.4, size=4, **look)
    look |= {"linestyle": "none", "markersize": 6, "err_kws": {"linewidth": 1.5}}
    sns.pointplot(frame, errorbar=limits, capsize=0.12, **look)
    axis.margins(**{"x" if flat else "y": 0.12})
    for place, mean in enumerate(average):
        point, offset = ((mean, place), (0, 5)) if flat else ((place, mean), (3, 4))
        note(axis, number(mean), point, offset)
    axis.set(**{"xlabel" if flat else "ylabel": ERROR, "ylabel" if flat else "xlabel": None})


def whole_numbers(axis):
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def show(axis, pixels):
    """One image, uint8 or float 0..1 [C, H, W], on an axis; one channel is drawn dark on light."""
    axis.imshow(np.asarray(pixels).transpose(1, 2, 0).squeeze(), cmap="gray_r")
    axis.set_axis_off()


def images(pixels, titles, columns=4):
    """Images in a grid, each with a title; at most four in a row, so that titles are read."""
    columns = min(columns, 4)
    rows = max(-(-len(pixels) // columns), 1)
    size = WIDE * columns / 4, 1.3 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, text in zip(axes.flat, pixels, titles, strict=False):
        show(axis, picture)
        axis.set_title(text, fontsize=SMALL, fontweight="normal", loc="center")
    return source(figure)


def probabilities(rows, classes, pixels=None):
    """What networks say of an image, {name: [classes]}: a panel of the ten likeliest for each.

    pixels: the image, which gets a panel of its own.
    """
    likeliest = np.argsort(-np.max([np.asarray(values) for values in rows.values()], axis=0))[:10]
    figures, names = [], [str(classes[index]) for index in likeliest]
    for name, values in rows.items():
        figure, (axis,) = panels(1, WIDE, 2.8)
        axis.barh(names, np.asarray(values)[likeliest], color=color(name))
        axis.set(title=name, xlabel="probability", xlim=(0, 1))
        axis.invert_yaxis()
        figures.append(source(figure))
    return figures if pixels is None else [images([pixels], [""], 1), *figures]
