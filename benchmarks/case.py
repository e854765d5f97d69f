"""What all variants share: network, device, batch, precision, and images.

CIFAR-100's images where they are found, and made-up ones of their shape where they are not.
"""

from dataclasses import replace

import torch

from banlib import models
from banlib.runs import accelerate as speed_ups
from banlib.runs import datasets, machine
from banlib.runs.parameters import check_network, integer
from banlib.runs.recipe import BadInput, Recipe, named
from banlib.views import Augmented, Split

MOST_STEPS = 32  # of a turn
RECIPE = Recipe(lr=0.001)  # the paper's; a small rate keeps an untrained network's loss in bounds


class Case:
    """network: a name; steps: for which there are images; accelerate: names of `runs.accelerate`.

    Raises BadInput for a network, device, batch, precision or speed-up that cannot be.
    """

    def __init__(
        self,
        network,
        device="auto",
        batch=128,
        steps=MOST_STEPS,
        precision="auto",
        accelerate=(),
        recipe=RECIPE,
    ):
        self.name, self.device = check_network(network), machine.choose_device(device)
        named("precision", precision, ("auto", "bf16", "fp32"))
        self.accelerate = tuple(named("speed-up", name, speed_ups.NAMES) for name in accelerate)
        self.batch = integer(batch)
        if self.batch is None or not 1 <= self.batch <= 4096:
            raise BadInput(f"batch must be an integer from 1 to 4096, got {batch!r}")
        self.numerics = machine.numerics(precision, self.device)
        self.data, self.dataset = images_at_hand(steps * self.batch)
        here, look = self.dataset.to(self.device), (recipe.pad, recipe.flip, recipe.border)
        self.labels, layout = here.train.labels, self.numerics.memory_format
        self.images = Augmented(here.train, here.mean, here.std, *look, layout)

    def network(self):
        """The network on the CPU, untrained: the same weights each time."""
        with machine.seeded(0, torch.device("cpu")):
            return models.build(self.name)

    def placed(self):
        """The network on the device, in our memory layout."""
        return self.network().to(self.device, memory_format=self.numerics.memory_format)

    def autocast(self):
        return self.numerics.autocast(self.device)

    def described(self):
        own = {"network": self.name, "batch": self.batch, "data": self.data}
        own |= {"numerics": str(self.numerics), "accelerate": list(self.accelerate)}
        return machine.describe(self.device, self.numerics) | own


def images_at_hand(count):
    """(what they are, a `datasets.Dataset` with so many training images); nothing is downloaded."""
    if datasets.locate("cifar100") or (datasets.home() / "decoded/cifar100.safetensors").exists():
        found = datasets.load("cifar100")
        first = Split(found.train.images[:count], found.train.labels[:count])
        return "CIFAR-100", replace(found, train=first)
    made = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=made)
    split = Split(images, torch.randint(100, (count,), generator=made))
    classes, even = tuple(map(str, range(100))), torch.full((3,), 0.5)
    made = datasets.Dataset("cifar100", "0" * 64, classes, split, split, even, even / 2)
    return "synthetic, of CIFAR-100's shape", made


def sgd(network, **options):
    own = {"momentum": RECIPE.momentum, "weight_decay": RECIPE.weight_decay}
    own |= {"nesterov": RECIPE.nesterov} | options
    return torch.optim.SGD(network.parameters(), RECIPE.lr, **own)
