"""Datasets as uint8 tensors that live on the device, and augmented images as numbered views of them.

An image at hand is (image index, view number). A view is one crop and flip out of a finite set, so a teacher can be
asked about exactly the image that its student sees, and its answer can be remembered.
"""

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from banlib import sources
from banlib.sources import DATASETS, DatasetError, check_name, content_digest, data_folder, home, locate

__all__ = ["Dataset", "Split", "load", "Facts", "facts", "Views", "Augmented"]
__all__ += ["DATASETS", "DatasetError", "check_name", "content_digest", "data_folder", "home", "locate"]


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 [n, channels, height, width]; labels: int64 [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split.

    digest: hex, of the content of both; mean, std: float32 [channels], of the training images scaled to 0..1.
    """

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
        return replace(self, **{part: getattr(self, part).to(device) for part in ("train", "test", "mean", "std")})


def load(name):
    """The dataset `name`, read once per process: "digits", "cifar10", "cifar100"; "digits-dev" to choose defaults on.

    The tensors are the same, row by row, whichever files they were read from. `banlib.sources` says where it looks, how
    each dataset is checked, and what CIFAR-10's check is worth.
    Raises ValueError for an unknown name, DatasetError (a ValueError) for damaged or altered files, FileNotFoundError
    if there are no files and the download fails.
    """
    return _load(check_name(name), home(), data_folder())


@functools.lru_cache(maxsize=4)
def _load(name, home_folder, folder):
    found = sources.read(name, home_folder, folder)
    train, test = (Split(*found[split][:2]) for split in ("train", "test"))
    digest = _digest([found[split][2] for split in ("train", "test")])
    mean, std = sources.channel_statistics(train.images)
    return Dataset(name, digest, sources.classes(name), train, test, mean.float(), std.float())


def _digest(of_splits):
    return hashlib.sha256("\n".join(of_splits).encode()).hexdigest()


class Facts(NamedTuple):
    """What a plan needs to know of a dataset. images: of the training split; digest: as `Dataset.digest`."""

    digest: str
    images: int
    channels: int
    image_size: int
    classes: int

    def __str__(self):
        return f"{self.channels}x{self.image_size}x{self.image_size} images of {self.classes} classes"


def facts(name):
    """`Facts` of a dataset. CIFAR-100's are known without its files, so that runs can be planned, and records of them
    read, where they are not; other datasets are loaded. Errors as `load`."""
    known = sources.EXPECTED.get(check_name(name))
    if known and known.digests:
        digest = _digest([known.digests[split] for split in ("train", "test")])
        return Facts(digest, known.counts["train"], 3, 32, len(known.classes))
    dataset = load(name)
    return Facts(dataset.digest, len(dataset.train.labels), dataset.channels, dataset.image_size, len(dataset.classes))


@dataclass(frozen=True)
class Views:
    """All crops by up to `pad` pixels, and their mirror images if `flip`, of a square image: a finite, numbered set.

    View v = (dy * (2 * pad + 1) + dx) * (2 if flip else 1) + flipped, with dy and dx in 0..2*pad: pad the image by
    `pad` pixels on each side, cut image_size rows from row dy and as many columns from column dx, then mirror left to
    right if flipped. border: "reflect" pads with the image mirrored at its edge pixels, "zero" with black pixels.
    Raises ValueError for a pad that is no integer from 0 to image_size - 1, or for another border.
    """

    pad: int
    flip: bool
    border: str
    image_size: int

    def __post_init__(self):
        size, pad = self.image_size, self.pad
        if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < size:
            raise ValueError(f"pad must be an integer from 0 to {size - 1} for {size}x{size} images, got {pad!r}")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")
        if self.border not in ("reflect", "zero"):
            raise ValueError(f"border must be 'reflect' or 'zero', got {self.border!r}")

    @property
    def count(self):
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    @property
    def identity(self):
        """The number of the view that is the image itself."""
        return self.number(self.pad, self.pad, False)

    def number(self, dy, dx, flipped):
        return (dy * (2 * self.pad + 1) + dx) * (2 if self.flip else 1) + int(flipped)

    def pixels(self):
        """Which pixel of the image each pixel of each view shows: int64 [count, image_size**2].

        Pixels are counted row by row; image_size**2 stands for a black one.
        """
        size = self.image_size
        place = torch.arange(2 * self.pad + 1)[:, None] - self.pad + torch.arange(size)  # [shift, row or column]
        if self.border == "reflect":
            place = place.abs()
            place = torch.where(place < size, place, 2 * (size - 1) - place)
        rows = place[:, None, None, :, None]  # [dy, dx, flipped, row, column]
        columns = torch.stack([place, place.flip(1)], 1) if self.flip else place[:, None]
        columns = columns[None, :, :, None, :]
        inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
        return torch.where(inside, rows * size + columns, size * size).reshape(self.count, size * size)


class Augmented:
    """A split's images, ready to be asked for as batches of (image, view) on the device they are on.

    split: Split; mean, std: float [C]; pad, flip, border: see `Views`. `.views` is the Views.
    """

    def __init__(self, split, mean, std, pad, flip, border):
        count, channels, height, width = split.images.shape
        if height != width:
            raise ValueError(f"views need square images, got {height}x{width}")
        self.views = Views(pad, flip, border, height)
        self.device = split.images.device
        self._shape = (channels, height, width)
        self._table = self.views.pixels().to(self.device)
        # No padded copy: a reflected border shows pixels of the image, a black one shows one more pixel per channel.
        self._pixels = split.images.flatten(2)
        if border == "zero":
            self._pixels = torch.cat([self._pixels, self._pixels.new_zeros(count, channels, 1)], 2)
        mean, std = mean.to("cpu", torch.float64), std.to("cpu", torch.float64)
        self._scale = (1 / (255 * std)).float().view(channels, 1, 1).to(self.device)
        self._shift = (-mean / std).float().view(channels, 1, 1).to(self.device)

    @property
    def count(self):
        """How many views each image has."""
        return self.views.count

    def batch(self, indices, views):
        """Image indices[b] in view views[b], normalised: float32 [B, C, H, W]. Both int64 [B], on its device."""
        # Whole rows of two tables, then one gather. 128 CIFAR images take 0.28 ms on one core; indexing by image,
        # channel, row and column takes 2.0 ms, strided windows of padded images 0.46 ms.
        where = self._table.index_select(0, views)[:, None].expand(-1, self._shape[0], -1)
        return self._normalise(self._pixels.index_select(0, indices).gather(2, where))

    def plain(self, indices):
        """The images as they are, normalised: `batch` with the identity view."""
        size = self._shape[-1]
        return self._normalise(self._pixels.index_select(0, indices)[:, :, : size * size])

    def _normalise(self, pixels):
        return pixels.reshape(-1, *self._shape).float().mul_(self._scale).add_(self._shift)
