"""The tables' networks, made small enough for machines that cannot train them."""

import math

from banlib.names import FAMILIES, parse


def shrunk(name, depth=1, width=1, teacher=None):
    """The name of a network of the tables with its depth and its width divided.

    Units of a stage are divided by `depth` and rounded up, growth and width by `width`, to at least
    1. A DenseNetBC loses its third transition: its classifier has few channels as it is. A
    PreActResNet keeps at most eight units, or it would take longest by far. The one to four units
    of a MatchWideResNet are kept: divided, they would be one network. A matched student matches
    `teacher`, by default its own, shrunk. Divided by 1 and 1, only the teacher changes.
    """
    name, family, args = parse(name)
    if (depth, width) == (1, 1) and not family.startswith("Match"):
        return name
    per_unit = {"WideResNet": 6, "PreActResNet": 9}.get(family)
    units = math.ceil((args["depth"] // per_unit if per_unit else args["units"]) / depth)
    if family.startswith("Match"):
        units = args["units"] if family == "MatchWideResNet" else units
        ratios = [f"{args[ratio]:.15g}" for ratio in FAMILIES[family][1:]]
        teacher = teacher or shrunk(args["teacher"], depth, width)
        return parse(f"{family}-{units}-{'-'.join(ratios)}@{teacher}")[0]
    if family == "PreActResNet":
        return parse(f"PreActResNet-{9 * (min(units, 8) if depth > 1 else units) + 2}")[0]
    wide = args[FAMILIES[family][1]]
    return parse(f"{family}-{6 * units + 4}-{max(1, round(wide / width))}")[0]
