"""How one network is trained (`Recipe`), which network that is (`RunSpec`), and the book's three sizes (`PROFILES`).

Everything a user can type is validated here, once, before anything is created or trained.
"""

import difflib
import hashlib
import json
import math
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from banlib import data, models
from banlib.objectives import OBJECTIVES

FORMAT = 1  # part of every run id; raised when training or the files of a run change their meaning
MOST_GENERATIONS = 20
MOST_SEEDS = 100
RUN_ID = r"[0-9a-f]{16}"


class BadInput(ValueError):
    """Something a user typed; a notebook shows the sentence alone, without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Recipe(Frozen):
    """How a network is trained. The defaults are the paper's, which are those of wide residual networks (section 3)."""

    epochs: Count = 200
    batch: Count = 128
    lr: Positive = 0.1
    lr_milestones: tuple[Count, ...] = (60, 120, 160)  # epochs after which lr is multiplied by lr_factor
    lr_factor: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    pad: Annotated[int, Field(ge=0)] = 4  # random crops from the image padded by this many pixels
    border: Literal["reflect", "zero"] = "reflect"  # the paper does not say; wide residual networks reflect
    flip: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3  # used by wide-ResNets only
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where the device gains by it
    test_every: Count = 1  # epochs between looks at the test set; the last epoch is always tested, and alone counts

    def lr_at(self, epoch):
        """The learning rate of an epoch, counted from 1."""
        return self.lr * self.lr_factor ** sum(epoch > milestone for milestone in self.lr_milestones)


class RunSpec(Frozen):
    """Everything that determines a trained network; its hash is the run id.

    Device, layout in memory, thread count and library versions can change the last bits too. They are recorded with the
    run, not hashed: a run means the same thing on every machine.
    """

    format: int = FORMAT
    network: str
    dataset: str
    dataset_digest: str
    recipe: Recipe
    objective: str = "label"
    temperature: Positive = 1.0
    seed: Annotated[int, Field(ge=0)]
    generation: Annotated[int, Field(ge=0, le=MOST_GENERATIONS)]
    teacher: Annotated[str, Field(pattern=f"^{RUN_ID}$")] | None = None
    share_ends: bool = False  # stem and classifier are the teacher's, copied and frozen (section 3, BAN-ResNet)
    label_weight: Positive = 1.0  # of the objective's term on the labels; the paper's weights are 1 and 1
    teacher_weight: Positive = 1.0  # of its term on the teacher's output

    @model_validator(mode="after")
    def taught_or_not(self):
        if self.network != (canonical := check_network(self.network)):
            raise ValueError(f"network {self.network!r} is written {canonical!r} in a spec")
        named("objective", self.objective, OBJECTIVES)
        if (self.objective == "label") != (self.teacher is None):
            raise ValueError(f"objective {self.objective!r} and teacher {self.teacher} do not go together")
        if self.share_ends and self.teacher is None:
            raise ValueError("share_ends needs a teacher whose stem and classifier are shared")
        for name, term in zip(("label_weight", "teacher_weight"), OBJECTIVES[self.objective], strict=True):
            if term is None and getattr(self, name) != 1:
                raise ValueError(f"objective {self.objective!r} has no term for {name}, which must stay 1")
        return self

    @property
    def run_id(self):
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    @property
    def weights(self):
        return self.label_weight, self.teacher_weight

    @property
    def name(self):
        """What it is called in a lineage: a control's name (`CONTROLS`), else its generation's."""
        for name, changes in CONTROLS.items():
            if self.generation and all(
                getattr(self, field) == value for field, value in ({"temperature": 1.0} | LATER | changes).items()
            ):
                return name
        return generation_name(self.generation)

    def canonical(self):
        """The one JSON text of this spec: sorted keys, no spaces.

        A field that came after format 1 is left out at the value that every run had before, so older ids stand.
        """
        told = self.model_dump(mode="json", exclude={name for name, value in LATER.items() if getattr(self, name) == value})
        return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)


LATER = {"share_ends": False, "label_weight": 1.0, "teacher_weight": 1.0}  # fields since format 1, and what runs were before

# Networks that are trained beside BAN-1, from its own initial weights, order and views, and differ from it in these fields
# of the spec. "labels x2" has no teacher and a loss as large as BAN-1's: what it gains, BAN-1's teacher did not give.
CONTROLS = {
    "labels x2": {"objective": "label", "label_weight": 2.0},
    "label+teacher, halved": {"objective": "label+teacher", "label_weight": 0.5, "teacher_weight": 0.5},
    "teacher": {"objective": "teacher"},
    "labels, restarted": {"objective": "label"},
}


class Profile(NamedTuple):
    """One size of the book: what is trained, how, and how often, when the reader asks for nothing else."""

    name: str
    dataset: str
    network: str
    recipe: Recipe
    gens: int
    seeds: int
    threads: int | None  # CPU threads of one run; None leaves torch's choice
    shrink: tuple = (1, 1)  # what depth and width of the tables' networks are divided by, see `models.shrunk`
    table_seeds: int = 1  # seeds of a whole table


# The digits profile was chosen on digits-dev, images that the reported test set does not hold: over 16 seeds BAN-1 made
# 2.2 points fewer errors than its teacher (95 % interval 0.9 to 3.5) and won in 13; fewer seeds leave the sign open.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "digits",
            "digits",
            "DenseNetBC-16-8",
            Recipe(
                epochs=80, batch=50, lr_milestones=(24, 48, 64), pad=1, flip=False, precision="fp32", test_every=10
            ),
            gens=3,
            seeds=16,
            threads=1,
            shrink=(7, 7.5),
            table_seeds=8,
        ),
        Profile(
            "cifar100-lite",
            "cifar100",
            "DenseNetBC-22-12",
            Recipe(epochs=10, lr_milestones=(3, 6, 8)),
            gens=3,
            seeds=1,
            threads=None,
            shrink=(5, 5),
        ),
        Profile("cifar100", "cifar100", "DenseNetBC-112-33", Recipe(test_every=5), gens=3, seeds=1, threads=None),
    )
}


def generation_name(generation):
    return "Teacher" if generation == 0 else f"BAN-{generation}"


class Settings(NamedTuple):
    """What a chapter or a command was asked to do, checked."""

    profile: Profile
    network: str
    gens: int
    seeds: tuple[int, ...]


def check_parameters(profile="digits", network="auto", gens="auto", seeds="auto"):
    """The parameters of a chapter or a command, whatever papermill or a shell made of them, as `Settings`.

    "auto" leaves a choice to the profile. Raises ValueError with one sentence for a bad value.
    """
    profile = PROFILES[named("profile", profile, PROFILES)]
    return Settings(
        profile,
        profile.network if network == "auto" else check_network(network),
        profile.gens if gens == "auto" else check_gens(gens),
        check_seeds(profile.seeds if seeds == "auto" else seeds),
    )


def check_network(name):
    """The network's canonical name; ValueError names the nearest known one."""
    try:
        return models.parse(name)[0]
    except ValueError as error:
        raise BadInput(str(error)) from None


def check_gens(value):
    """The number of generations after the teacher, an int from 0 to 20."""
    number = integer(value)
    if number is None or not 0 <= number <= MOST_GENERATIONS:
        raise BadInput(f"gens must be an integer from 0 to {MOST_GENERATIONS}, got {value!r}")
    return number


def check_seeds(value):
    """A count (3 means seeds 0, 1, 2) or a list ([4, 7], "4,7") as a tuple of different ints."""
    complaint = BadInput(
        f"seeds must be a count from 1 to {MOST_SEEDS} or a list of different seeds such as '4,7', got {value!r}"
    )
    if isinstance(value, str) and "," in value:
        value = [part for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        seeds = tuple(integer(seed) for seed in value)
        if not 1 <= len(seeds) <= MOST_SEEDS or len(set(seeds)) < len(seeds):
            raise complaint
        if any(seed is None or not 0 <= seed < 2**31 for seed in seeds):
            raise complaint
        return seeds
    count = integer(value)
    if count is None or not 1 <= count <= MOST_SEEDS:
        raise complaint
    return tuple(range(count))


def integer(value):
    """value as an int if it is one, written as an int, an integral float or a decimal string; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20 else None
    return value if isinstance(value, int) else None


def named(kind, value, names):
    """value if it is one of names; otherwise a ValueError that suggests the nearest."""
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), list(names), n=1, cutoff=0.0)
    raise BadInput(f"unknown {kind} {value!r}; did you mean {near[0]!r}? (one of: {', '.join(names)})")


def plain(error):
    """A pydantic ValidationError as one sentence: field, what is wrong, what was given."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field or 'spec'}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
