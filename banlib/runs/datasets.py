"""Datasets by name: what they are, and where they lie."""

import functools
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

from banlib.runs import cifar, content
from banlib.runs.content import DatasetError, in_order, line, place_in_class
from banlib.runs.disk import home
from banlib.runs.recipe import named
from banlib.views import Split

DATASETS = ("digits", "cifar10", "cifar100")
# To choose settings on, with images that the reported test set does not hold. digits-dev shares the
# training images of digits. cifar100-dev splits CIFAR-100's: tested on are HELD_OUT of each class.
DEV, HELD_OUT = ("digits-dev", "cifar100-dev"), 50
DIGITS_DIGEST = "06042341fe50ad923c370d751890d1179f655d677c2e7c919737fce6eb17f67f"  # of all 1,797
DEV_DIGEST = "2b246b6d9ca50c18f84e517ef92541eaf2682fd273086f73b2793065334e51dd"  # cifar100-dev's


class Facts(NamedTuple):
    """What a plan needs to know of a dataset. images: of the training split."""

    digest: str
    images: int
    channels: int
    image_size: int
    classes: int

    def __str__(self):
        shape = f"{self.channels}x{self.image_size}x{self.image_size}"
        return f"{shape} images of {self.classes} classes"


@dataclass(frozen=True, eq=False)
class Dataset:
    """digest: hex, of the content of both splits; mean, std: float32 [channels], of the training
    images scaled to 0..1."""

    name: str
    digest: str
    classes: tuple
    train: Split
    test: Split
    mean: torch.Tensor
    std: torch.Tensor

    @property
    def channels(self):
        return self.train.images.shape[1]

    @property
    def image_size(self):
        return self.train.images.shape[-1]

    def to(self, device):
        parts = ("train", "test", "mean", "std")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})


def load(name):
    """The dataset `name`, read once per process: the same tensors whatever files it is in.

    Raises BadInput for an unknown name, DatasetError for damaged or altered files (ValueErrors),
    FileNotFoundError if there are no files and the download fails.
    """
    return _load(check_name(name), home(), data_folder())


@functools.lru_cache(maxsize=4)
def _load(name, home_folder, folder):
    if name.startswith("digits"):
        classes, splits = tuple("0123456789"), digits(name)
    else:
        base = name.removesuffix("-dev")
        classes = cifar.EXPECTED[base].classes
        splits = cifar.read(base, home_folder, folder).values()
    if name == "cifar100-dev":
        images, labels, _ = next(iter(splits))
        test = place_in_class(labels) <= HELD_OUT
        splits = [in_order(images[rows], labels[rows]) for rows in (~test, test)]
    (*train, train_digest), (*test, test_digest) = splits
    mean, std = content.channel_statistics(train[0])
    digest = content.digest_of([train_digest, "\n", test_digest])
    return Dataset(name, digest, classes, Split(*train), Split(*test), mean.float(), std.float())


def digits(name):
    """Trained on: 10 of each class, by digest. 1,000 of the others are tested on, 697 chosen on."""
    try:
        [package] = find_spec("sklearn").submodule_search_locations  # importing it takes 2 seconds
        rows = numpy.loadtxt(Path(package, "datasets/data/digits.csv.gz"), delimiter=",")
        images = torch.from_numpy(rows[:, :64] * (255 / 16)).round().byte().view(-1, 1, 8, 8)
        images, labels, digest = in_order(images, torch.from_numpy(rows[:, 64]).long())
        if digest != DIGITS_DIGEST:
            raise ValueError(f"content digest {digest}, expected {DIGITS_DIGEST}")
    except Exception as error:  # of gzip and numpy; or it is not installed
        what = f"scikit-learn's digits can't be used ({line(error)})"
        raise DatasetError(f"{what}: install scikit-learn again") from None
    place = place_in_class(labels)
    train, rest = (place <= 10).nonzero()[:, 0], (place > 10).nonzero()[:, 0]
    test = rest[:-1000] if name in DEV else rest[-1000:]
    return [in_order(images[rows], labels[rows]) for rows in (train, test)]


def facts(name):
    """`Facts` of a dataset. CIFAR-100's are known without its files, so that runs can be planned,
    and records of them read, where those are not; others are loaded. Errors as `load`."""
    name = check_name(name)
    if name == "cifar100-dev":
        return Facts(DEV_DIGEST, 45_000, 3, 32, 100)
    if name == "cifar100":
        digests = cifar.EXPECTED[name].digests.values()
        return Facts(content.digest_of("\n".join(digests)), 50_000, 3, 32, 100)
    known = load(name)
    images = len(known.train.labels)
    return Facts(known.digest, images, known.channels, known.image_size, len(known.classes))


def check_name(name):
    """`name`, if it is a dataset's; else BadInput with the nearest name."""
    return named("dataset", name, (*DATASETS, *DEV))


def data_folder():
    """Where datasets lie: $BANLIB_DATA, else `data` in `home()`. Absolute; need not exist."""
    return Path(os.environ.get("BANLIB_DATA") or home() / "data").expanduser().absolute()


def locate(name):
    """(layout, path) of a dataset's files, None if the data folder does not hold them. Layouts:
    "scikit-learn" (no path), "parquet", "torchvision", "archive"."""
    if check_name(name).startswith("digits"):
        return "scikit-learn", None
    source = cifar.find(name.removesuffix("-dev"), data_folder())
    return source and source[:2]
