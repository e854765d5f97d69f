"""What a network's name says, before anything is built: family, numbers, channels. No torch."""

import difflib
import re

# What the numbers in a family's names are, in their order.
FAMILIES = {
    "DenseNetBC": ("depth", "growth"),
    "WideResNet": ("depth", "width"),
    "PreActResNet": ("depth",),
    "MatchPreResNet": ("units", "ratio"),
    "MatchWideResNet": ("units", "ratio"),
    "MatchDenseNet": ("units", "ratio_in", "ratio_out"),
}
MATCHED_TEACHER = "DenseNetBC-90-60"  # table 2's

# Table 1's networks, (depth, growth), that have its parameters only when they are read like this.
UNITS = {(112, 33): 17}  # in each block, where the depth says 18
FINAL_TRANSITION = {(90, 60), (80, 80), (80, 120)}

# Far beyond the paper's, near enough that a slip of the keyboard costs neither minutes nor memory.
LARGEST = {"depth": 2000, "growth": 1000, "width": 100, "units": 500}
RATIOS = 0.01, 16


def parse(name):
    """(canonical name, family, arguments by name) of a network's name.

    The paper's spellings are accepted: "Wide-ResNet-28-10" is "WideResNet-28-10".
    DenseNetBC-L-k-t3 has a third transition. A matched student names its teacher after an @, if it
    is not DenseNetBC-90-60: "MatchWideResNet-2-1@DenseNetBC-40-12".
    Arguments: the numbers of FAMILIES; for a DenseNetBC also units and final_transition, for a
    matched student teacher.
    Raises ValueError with a name that may be meant, or with what was expected of a number.
    """
    if not isinstance(name, str):
        raise ValueError(f"a network is a name such as {MATCHED_TEACHER!r}, got {name!r:.80}")
    match = re.fullmatch(r"(.+?)((?:-[0-9.]+)+)(-t3)?(@.+)?", name) if len(name) <= 200 else None
    family, digits, third, teacher = match.groups("") if match else 4 * ("",)
    # "Match-Wide-ResNet" and "Pre-activation ResNet" are the paper's.
    family = re.sub("(?<=[a-z])-(?=[A-Z])", "", family.replace("Pre-activation ", "PreAct"))
    dense, matched = family == "DenseNetBC", family.startswith("Match")
    if family not in FAMILIES or (third and not dense) or (teacher and not matched):
        raise ValueError(f"unknown network {name!r:.80}; {hint(name)} (banlib networks lists all)")

    args = numbers(name, family, digits[1:].split("-"))
    canonical = "-".join([family, *(f"{value:.15g}" for value in args.values())])
    if dense:
        own = args["depth"], args["growth"]
        args["units"] = UNITS.get(own, (own[0] - 4) // 6)
        args["final_transition"] = bool(third) or own in FINAL_TRANSITION
        canonical += third if own not in FINAL_TRANSITION else ""
    elif matched:
        args["teacher"], kind, _ = parse(teacher[1:] or MATCHED_TEACHER)
        if kind != "DenseNetBC":
            raise ValueError(f"the teacher that {name!r} matches must be a DenseNetBC")
        canonical += f"@{args['teacher']}" if args["teacher"] != MATCHED_TEACHER else ""
    check_shape(name, family, args)
    return canonical, family, args


def boundaries(units, growth, final_transition):
    """[(channels into a block, out of its last unit, after its transition), ...] of a DenseNet-BC.

    units: in each block. The stem gives 2 growth channels (the DenseNet paper's setting for BC); a
    transition halves them, an odd count by floor.
    """
    edges, channels = [], 2 * growth
    for block, count in enumerate(units):
        grown = channels + count * growth
        closed = grown // 2 if final_transition or block < len(units) - 1 else grown
        edges.append((channels, grown, closed))
        channels = closed
    return edges


def edges_of(teacher):
    """`boundaries` of a DenseNetBC by its name."""
    args = parse(teacher)[2]
    return boundaries((args["units"],) * 3, args["growth"], args["final_transition"])


def resnet_widths(edges, ratio):
    """Each stage's channels: ratio x what the teacher's stage gives, rounded."""
    widths = [round(ratio * closed) for _, _, closed in edges]
    if min(widths) < 4:  # a bottleneck is a quarter as wide
        expected = "each needs 4 or more: take a larger ratio"
        raise ValueError(f"ratio {ratio:g} gives stages of {widths} channels, but {expected}")
    return widths


def densenet_shapes(edges, units, ratio_in, ratio_out):
    """(channels into the first unit, growth) of each stage, rounded."""
    entries = [round(ratio_in * channels) for channels, _, _ in edges]
    ends = [ratio_out / 2 * grown for _, grown, _ in edges]
    shapes = [(a, round((b - a) / units)) for a, b in zip(entries, ends, strict=True)]
    if min(map(min, shapes)) < 1:
        given = f"ratios {ratio_in:g} and {ratio_out:g} over {units} units"
        expected = "each must be 1 or more: take a larger second ratio or fewer units"
        raise ValueError(f"{given} give (channels, growth) {shapes}, but {expected}")
    return shapes


def numbers(name, family, texts):
    """{"depth": 90, "growth": 60} from ["90", "60"]."""
    expected, args = FAMILIES[family], {}
    if len(texts) != len(expected):
        form = f"{len(expected)}: {family}-{'-'.join(expected)}"
        raise ValueError(f"network {name!r} has {len(texts)} numbers, expected {form}")
    for what, text in zip(expected, texts, strict=True):
        kind, noun, pattern, (least, most) = int, "an integer", "[0-9]+", (1, LARGEST.get(what))
        if what.startswith("ratio"):
            kind, noun, pattern, (least, most) = float, "a number", r"[0-9]+(\.[0-9]+)?", RATIOS
        args[what] = kind(text) if re.fullmatch(pattern, text) else 0
        if not least <= args[what] <= most:
            form = f"{noun} from {least} to {most}"
            raise ValueError(f"{what} of {name!r} must be {form}, got {text}")
    return args


def check_shape(name, family, args):
    """ValueError if no network of the family has these numbers."""
    if family == "MatchDenseNet":
        densenet_shapes(edges_of(args["teacher"]), *(args[what] for what in FAMILIES[family]))
    elif family.startswith("Match"):
        resnet_widths(edges_of(args["teacher"]), args["ratio"])
    elif family == "DenseNetBC" and args["units"] < 1:
        form = "10 or more (a unit in each of three blocks)"
        raise ValueError(f"depth of {name!r} must be {form}, got {args['depth']}")
    elif family in ("WideResNet", "PreActResNet"):
        per, rest = (6, 4) if family == "WideResNet" else (9, 2)
        if args["depth"] < per + rest or args["depth"] % per != rest:
            form = f"{per} n + {rest} ({per + rest}, {2 * per + rest}, {3 * per + rest}, ...)"
            raise ValueError(f"depth of {name!r} must be {form}, got {args['depth']}")


def hint(name):
    """The nearest family that has a network of the numbers that were typed."""
    pattern = r"(.*?)((?:[-_ ][0-9.]+)*)(-t3)?(@.*)?"
    typed, digits, third, teacher = re.fullmatch(pattern, name[:200].strip(), re.S).groups("")
    families = {family.lower(): family for family in FAMILIES}
    for near in difflib.get_close_matches(typed.lower(), families, n=4) if digits else ():
        family, ending = families[near], third if near == "densenetbc" else ""
        if near.startswith("match"):
            ending = teacher if teacher != "@" else ""
        try:
            meant = parse(family + re.sub("[_ ]", "-", digits) + ending)[0]
            return f"did you mean {meant!r}?"
        except ValueError:
            pass  # this family does not take those numbers: try the next
    return f"expected a name such as {MATCHED_TEACHER!r}"
