"""How a network is trained (`Recipe`), which one it is (`RunSpec`), the book's sizes. No torch."""

import difflib
import hashlib
import json
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from banlib import names

FORMAT = 1  # part of every run id; raised when training or a run's files change their meaning
MOST_GENERATIONS = 20
RUN_ID = r"[0-9a-f]{16}"

# objective -> (has it a term on the labels?, one on the teacher?), as in objectives.OBJECTIVES
OBJECTIVE_TERMS = {
    "label": (True, False),
    "label+teacher": (True, True),
    "teacher": (False, True),
    "cwtm": (True, False),
    "dkpp": (False, True),
}

# Networks trained beside BAN-1, with its initial weights, order and views, and what differs. The
# loss of "labels x2" is as large as BAN-1's, so what that gains is not the teacher's doing.
HALVED = {"objective": "label+teacher", "label_weight": 0.5, "teacher_weight": 0.5}
CONTROLS = {
    "labels x2": {"objective": "label", "label_weight": 2.0},
    "label+teacher, halved": HALVED,
    "teacher": {"objective": "teacher"},
    "labels, restarted": {"objective": "label"},
}
# fields that older specs lack, and what they say of those
LATER = {"share_ends": False, "label_weight": 1.0, "teacher_weight": 1.0, "imported": None}


class BadInput(ValueError):
    """Something a user typed; a notebook shows the sentence alone, without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def named(kind, value, known):
    """value if it is one of the names `known`; otherwise a BadInput that suggests the nearest."""
    if isinstance(value, str) and value in known:
        return value
    [near] = difflib.get_close_matches(str(value).lower(), list(known), n=1, cutoff=0.0)
    raise BadInput(f"unknown {kind} {value!r}; did you mean {near!r}? (one of: {', '.join(known)})")


def generation_name(generation):
    return "Teacher" if generation == 0 else f"BAN-{generation}"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Recipe(Frozen):
    """How a network is trained; by default as in the paper, that is, as wide residual networks."""

    epochs: Count = 200
    batch: Count = 128
    lr: Positive = 0.1
    lr_milestones: tuple[Count, ...] = (60, 120, 160)  # epochs after which lr *= lr_factor
    lr_factor: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    pad: Annotated[int, Field(ge=0)] = 4  # random crops from the image padded by so many pixels
    border: Literal["reflect", "zero"] = "reflect"  # not in the paper; wide-ResNets reflect
    flip: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3  # in wide-ResNets only
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where it is fast
    test_every: Count = 1  # epochs between looks at the test set; the last, which counts, has one

    def lr_at(self, epoch):
        """The learning rate of an epoch, counted from 1."""
        return self.lr * self.lr_factor ** sum(epoch > last for last in self.lr_milestones)

    def at(self, rate):
        """The same recipe with another learning rate."""
        return self.but(lr=float(rate))

    def lasting(self, epochs):
        """The same recipe stretched or shortened, its milestones too."""
        milestones = (round(last * epochs / self.epochs) for last in self.lr_milestones)
        return self.but(epochs=epochs, lr_milestones=tuple(max(1, last) for last in milestones))

    def but(self, **changes):
        """The same recipe with other values, which are checked as any."""
        return Recipe(**self.model_dump() | changes)


class RunSpec(Frozen):
    """Everything that determines a trained network; its hash is the run id.

    Device, layout in memory, threads and library versions can change the last bits too. They are
    recorded with the run, not hashed: a run means the same thing on every machine.
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
    share_ends: bool = False  # stem and classifier: the teacher's, frozen (section 3, BAN-ResNet)
    label_weight: Positive = 1.0  # of the objective's term on the labels; in the paper 1
    teacher_weight: Positive = 1.0  # of its term on the teacher's output; in the paper 1
    # SHA-256 of weights that were trained elsewhere; the recipe is ELSEWHERE then and says nothing
    imported: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def consistent(self):
        canonical, _, _ = names.parse(self.network)
        if self.network != canonical:
            raise ValueError(f"network {self.network!r} is written {canonical!r} in a spec")
        terms = OBJECTIVE_TERMS[named("objective", self.objective, OBJECTIVE_TERMS)]
        if (self.objective == "label") != (self.teacher is None):
            pair = f"objective {self.objective!r} and teacher {self.teacher}"
            raise ValueError(f"{pair} do not go together")
        if self.share_ends and self.teacher is None:
            raise ValueError("share_ends needs a teacher whose stem and classifier are shared")
        for name, has_term in zip(("label_weight", "teacher_weight"), terms, strict=True):
            if not has_term and getattr(self, name) != 1:
                lacks = f"objective {self.objective!r} has no term for {name}"
                raise ValueError(f"{lacks}, which must stay 1")
        return self

    def canonical(self):
        """The one JSON text of this spec: sorted keys, no spaces.

        A field of LATER is left out at the value that runs had before, so older ids stand.
        """
        unchanged = {name for name, value in LATER.items() if getattr(self, name) == value}
        fields = self.model_dump(mode="json", exclude=unchanged)
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def run_id(self):
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    @property
    def weights(self):
        return self.label_weight, self.teacher_weight

    @property
    def name(self):
        """What it is called in a lineage: a control's name, else its generation's."""
        for name, changes in CONTROLS.items():
            wanted = {"temperature": 1.0} | LATER | changes
            if self.generation and all(getattr(self, key) == wanted[key] for key in wanted):
                return name
        return generation_name(self.generation)

    def stream(self, purpose, epoch=0):
        """A seed for one purpose, a function of (seed, generation, epoch) alone."""
        text = f"{self.seed}/{self.generation}/{epoch}/{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Profile(NamedTuple):
    """One size of the book: what is trained, how and how often, if the reader asks for no more."""

    name: str
    dataset: str
    network: str
    recipe: Recipe
    gens: int
    seeds: int
    threads: int | None  # CPU threads of one run; None leaves torch's choice
    shrink: tuple = (1, 1)  # divisors of depth and width of the tables' networks
    table_seeds: int = 1  # seeds of a whole table


class Settings(NamedTuple):
    """What a chapter or a command was asked to do, checked."""

    profile: Profile
    network: str
    gens: int
    seeds: tuple[int, ...]
    teacher: RunSpec | None = None  # a finished run that teaches BAN-1, of each seed


# Chosen on digits-dev, images that the reported test set does not hold; lr by `campaign.RULE`.
DIGITS = Recipe(
    epochs=80,
    batch=50,
    lr=0.4,
    lr_milestones=(24, 48, 64),
    pad=1,
    flip=False,
    precision="fp32",
    test_every=10,
)
ELSEWHERE = Recipe(epochs=1, lr_milestones=(), precision="fp32")  # of weights that are imported
LITE = Recipe(epochs=10, lr=0.4, lr_milestones=(3, 6, 8))  # lr by `campaign.RULE`, too
PAPER = Recipe(test_every=5)
_sizes = (
    Profile("digits", "digits", "DenseNetBC-16-8", DIGITS, 3, 16, 1, (7, 7.5), 8),
    Profile("cifar100-lite", "cifar100", "DenseNetBC-22-12", LITE, 3, 1, None, (5, 5)),
    Profile("cifar100", "cifar100", "DenseNetBC-112-33", PAPER, 3, 1, None),
)
PROFILES = {profile.name: profile for profile in _sizes}
