"""Checks of what people type, whatever papermill, a shell or a notebook made of it. No torch.

Each raises BadInput with one sentence before anything is created or trained.
"""

import ast
import math
import os
import re
import reprlib
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Real
from pathlib import Path

from pydantic import ValidationError

from banlib import names
from banlib.runs.recipe import MOST_GENERATIONS, PROFILES, BadInput, Settings, named

MOST_SEEDS, MOST_JOBS = 100, 256


def check_parameters(profile="digits", network="auto", gens="auto", seeds="auto", **unknown):
    """What a chapter or a command was asked to do, as `Settings`; "auto" is the profile's choice.

    In a chapter that papermill runs, a parameter that the chapter lacks is refused too.
    """
    refuse_others(unknown, ("profile", "network", "gens", "seeds"))
    refuse_others(*injected())
    typed = typed_for_papermill()
    gens, seeds = typed.get("gens", gens), typed.get("seeds", seeds)
    profile = PROFILES[named("profile", profile, PROFILES)]
    return Settings(
        profile,
        profile.network if is_auto(network) else check_network(network),
        profile.gens if is_auto(gens) else check_integer("gens", gens, 0, MOST_GENERATIONS),
        check_seeds(profile.seeds if is_auto(seeds) else seeds),
    )


def refuse_others(given, known):
    """BadInput for the first of the given names that is none of the known ones."""
    for name in given:
        named("parameter", name, known)


def injected():
    """(names in the cell that papermill put into this notebook, names in the chapter's own)."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    for own, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith("# Parameters\n") and "profile" in assigned(own):  # papermill's mark
            return assigned(cell), assigned(own)
    return (), ()


def assigned(cell):
    nodes = (node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name))
    return [node.id for node in nodes if isinstance(node.ctx, ast.Store)]


def typed_for_papermill():
    """{name: text} of each `papermill -p name text` with a _, as papermill turns 4_7 into 47."""
    try:
        parent = int(os.environ["JPY_PARENT_PID"])
        words = Path(f"/proc/{parent}/cmdline").read_text().split("\0")
    except (KeyError, ValueError, OSError):  # no kernel, or a system that does not tell
        return {}
    places = [n for n, word in enumerate(words[:-2]) if word in ("-p", "--parameters")]
    return {words[n + 1]: words[n + 2] for n in places if "_" in words[n + 2]}


def is_auto(value):
    return isinstance(value, str) and value == "auto"


def check_network(name):
    """The network's canonical name."""
    try:
        return names.parse(name)[0]
    except ValueError as error:
        raise BadInput(str(error)) from None


def check_integer(name, value, least, most, other=""):
    number = integer(value)
    if number is None or not least <= number <= most:
        raise not_a(name, f"{other}an integer from {least} to {most}", value)
    return number


def check_seeds(value):
    """A count (3 means seeds 0, 1, 2), or seeds: [4, 7], "4,7", "[4, 7]", a range, an array."""
    given = plain_python(value)
    if isinstance(given, str) and re.search(r"[\[(,]", given):
        given = re.findall(r"[^\[\](),\s]+", given)
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        seeds = [integer(seed) for seed in islice(given, MOST_SEEDS + 1)]
    else:
        count = integer(given)
        seeds = range(count) if count is not None and 1 <= count <= MOST_SEEDS else []
    fits = all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    if not fits or not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
        count = f"a count from 1 to {MOST_SEEDS}"
        raise not_a("seeds", f"{count} or a list of different seeds such as '4,7'", value)
    return tuple(seeds)


def check_minutes(value):
    """The deadline so many minutes from now, by time.monotonic(); None means math.inf, never."""
    try:
        minutes = math.inf if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        minutes = math.nan
    if isinstance(value, bool) or not (value is None or 0 < minutes < math.inf):
        raise not_a("minutes", "a number above 0", value)
    return time.monotonic() + 60 * minutes


def check_jobs(value):
    """How many runs to train side by side, 1 to 256; None for "auto"."""
    return None if is_auto(value) else check_integer("jobs", value, 1, MOST_JOBS, "'auto' or ")


def check_workers(value):
    return check_integer("workers", value, 1, MOST_JOBS)


def integer(value):
    """value as an int if it is a whole number, or a decimal string of one; else None."""
    value = plain_python(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value) else None
    whole = isinstance(value, Real) and not isinstance(value, bool) and value % 1 == 0
    return int(value) if whole else None


def plain_python(value):
    """numpy's, pandas' and torch's numbers and arrays as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def not_a(name, expected, value):
    return BadInput(f"{name} must be {expected}, got {brief(value)}")


def brief(value):
    """What was given, in one line, however long it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return " ".join(short.repr(plain_python(value)).split())


def plain(error):
    """A pydantic ValidationError as one sentence: field, what is wrong, what was given."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "spec"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}, got {brief(first['input'])}"
