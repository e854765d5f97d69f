"""Datasets as uint8 tensors that live on the device, and augmented images as numbered views of them.

An image at hand is (image index, view number): a view is one crop and flip out of a finite set, so a teacher can be asked
about exactly the image its student sees, and its answer can be remembered. No file here is trusted before its digest fits.
"""

import contextlib
import difflib
import functools
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import tarfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy
import platformdirs
import safetensors.torch
import torch

# scikit-learn, pyarrow, Pillow and torchvision are imported where they are used: together they take seconds to load.

DATASETS = ("digits", "cifar10", "cifar100")
DIGITS_DEV = "digits-dev"  # the same training images, tested on images that the reported test set does not hold


class DatasetError(ValueError):
    """A dataset's files are damaged, incomplete or altered."""


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 [n, channels, height, width]; labels: int64 [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split. digest: hex, of both splits' content; mean, std: float32 [channels], of the training
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
        moved = {part: getattr(self, part).to(device) for part in ("train", "test", "mean", "std")}
        return replace(self, **moved)


def load(name):
    """The dataset `name` ("digits", "cifar10", "cifar100", or "digits-dev" for choosing defaults), read once per process.

    CIFAR is looked for among the decoded tensors of an earlier load, then in the data folder as the hub's parquet files, then
    as torchvision's folder; if none is there it is downloaded. Whatever the source, the tensors are the same, row by row.

    CIFAR-100 is checked by content digest. For CIFAR-10 no content digest is known to us: torchvision's files are checked by
    their MD5s, parquet files by images per class and by the published channel means and deviations, which would not notice a
    few altered pixels; the digest found is still part of the id of every run.

    Raises ValueError for an unknown name, DatasetError (a ValueError) for damaged or altered files, FileNotFoundError if
    there are none and the download fails.
    """
    return _load(check_name(name), home(), data_folder())


@functools.lru_cache(maxsize=4)
def _load(name, home_folder, folder):
    if name in EXPECTED:
        classes = EXPECTED[name].classes
        train, test, digests = _cifar(name, home_folder, folder)
    else:
        classes = tuple("0123456789")
        train, test, digests = _digits(name)
    mean, std = channel_statistics(train.images)
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Dataset(name, digest, classes, train, test, mean.float(), std.float())


def check_name(name):
    """`name`, if it is a dataset's; else ValueError with the nearest name."""
    names = (*DATASETS, DIGITS_DEV)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the datasets are {', '.join(DATASETS)}"
    raise ValueError(f"unknown dataset {name!r}; {hint}")


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 [n, C, H, W] scaled to 0..1: two float64 [C].

    From the counts of the 256 values: exact integer sums, where float32 accumulation loses digits.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean, variance.sqrt()


# Views


@dataclass(frozen=True)
class Views:
    """All crops by up to `pad` pixels, and their mirror images if `flip`, of a square image: a finite, numbered set.

    View v = (dy * (2 * pad + 1) + dx) * (2 if flip else 1) + flipped, with dy and dx in 0..2*pad: cut image_size rows from
    row dy, and as many columns from column dx, of the image padded by `pad` on each side; then mirror left to right if flipped.
    border: "reflect" mirrors the image at its edge (the edge itself is not repeated), "zero" adds black pixels.
    Raises ValueError for a pad that is no whole number from 0 to image_size - 1, or another border.
    """

    pad: int
    flip: bool
    border: str
    image_size: int

    def __post_init__(self):
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or not 0 <= self.pad < self.image_size:
            limit = self.image_size - 1
            raise ValueError(f"pad must be an integer from 0 to {limit} for {self.image_size}-pixel images, got {self.pad!r}")
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
        """For each view, which pixel of the unpadded image each of its pixels shows: int64 [count, image_size**2].

        Pixels count row by row; image_size**2 stands for the black border.
        """
        size, shifts = self.image_size, 2 * self.pad + 1
        place = torch.arange(shifts)[:, None] - self.pad + torch.arange(size)  # [shift, row or column], -pad..size-1+pad
        if self.border == "reflect":
            place = place.abs()
            place = torch.where(place < size, place, 2 * (size - 1) - place)
        columns = torch.stack([place, place.flip(1)], 1) if self.flip else place[:, None]  # [shift, flipped, column]
        rows = place[:, None, None, :, None]
        columns = columns[None, :, :, None, :]
        inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
        return torch.where(inside, rows * size + columns, size * size).reshape(self.count, size * size)


class Augmented:
    """A split's images, ready to be asked for as batches of (image, view) on the device they are on.

    split: Split; mean, std: float [C]; pad, flip, border: see `Views`, kept as `.views`.
    """

    def __init__(self, split, mean, std, pad, flip, border):
        images = split.images
        count, channels, height, width = images.shape
        if height != width:
            raise ValueError(f"views need square images, got {height}x{width}")
        self.views = Views(pad, flip, border, height)
        self._shape = (channels, height, width)
        self._table = self.views.pixels().to(images.device)
        # No padded copy: a reflected border shows pixels of the image, a black one shows one more pixel per channel.
        black = images.new_zeros(count, channels, 1 if border == "zero" and pad else 0)
        self._pixels = torch.cat([images.flatten(2), black], 2)
        mean, std = mean.double(), std.double()
        self._scale = (1 / (255 * std)).float().view(channels, 1, 1).to(images.device)
        self._shift = (-mean / std).float().view(channels, 1, 1).to(images.device)

    @property
    def count(self):
        """How many views each image has."""
        return self.views.count

    @property
    def device(self):
        return self._pixels.device

    def batch(self, indices, views):
        """Image indices[b] in view views[b], normalised: float32 [B, C, H, W]. indices, views: int64 [B] on the device."""
        # Whole rows of two tables, then one gather. On one core 0.28 ms for 128 CIFAR images; indexing by image, channel,
        # row and column takes 2.0 ms, strided windows of padded images 0.46 ms.
        where = self._table.index_select(0, views)[:, None].expand(-1, self._shape[0], -1)
        return self._normalise(self._pixels.index_select(0, indices).gather(2, where))

    def plain(self, indices):
        """The images as they are, normalised: `batch` with the identity view."""
        height, width = self._shape[1:]
        return self._normalise(self._pixels.index_select(0, indices)[:, :, : height * width])

    def _normalise(self, pixels):
        return pixels.reshape(-1, *self._shape).float().mul_(self._scale).add_(self._shift)


# Content digests


def content_digest(images, labels):
    """SHA-256 (hex) of a split's content, whatever its row order and file format.

    Over the sorted lines "<SHA-256 of the image's bytes, row by row, each pixel's channels together> <label>\\n".
    images: uint8 [n, C, H, W]; labels: int64 [n].
    """
    return _digest_of(sorted(_digest_lines(images, labels)))


def _digest_lines(images, labels):
    chunks = (chunk.permute(0, 2, 3, 1).contiguous().numpy() for chunk in images.split(1000))  # no second copy of it all
    pixels = (image for chunk in chunks for image in chunk)
    return [f"{hashlib.sha256(image).hexdigest()} {label}\n" for image, label in zip(pixels, labels.tolist())]


def _digest_of(sorted_lines):
    return hashlib.sha256("".join(sorted_lines).encode()).hexdigest()


def _in_order(images, labels):
    """The split with its rows in the order of their digest lines, and its content digest."""
    lines = _digest_lines(images, labels)
    order = sorted(range(len(lines)), key=lines.__getitem__)
    if order != list(range(len(lines))):
        images, labels = images[order], labels[order]
    return Split(images, labels), _digest_of([lines[row] for row in order])


# Digits: carried by scikit-learn

DIGITS_DIGEST = "06042341fe50ad923c370d751890d1179f655d677c2e7c919737fce6eb17f67f"  # of all 1,797, measured


def _digits(name):
    """The first 10 images of each class, by digest, to train on; of the others the last 1,000 to test on, 697 to choose on."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype("uint8"))[:, None]
    everything, digest = _in_order(images, torch.from_numpy(bunch.target.astype("int64")))
    if digest != DIGITS_DIGEST:
        raise DatasetError(
            f"scikit-learn's digits have content digest {digest}, expected {DIGITS_DIGEST}: install scikit-learn again"
        )
    earlier = torch.nn.functional.one_hot(everything.labels).cumsum(0).gather(1, everything.labels[:, None])[:, 0]
    rest = (earlier > 10).nonzero()[:, 0]
    parts = (earlier <= 10).nonzero()[:, 0], rest[:-1000] if name == DIGITS_DEV else rest[-1000:]
    train, test = (Split(everything.images[rows], everything.labels[rows]) for rows in parts)
    return train, test, [content_digest(split.images, split.labels) for split in (train, test)]


# CIFAR: what it must be, and where it may come from


@dataclass(frozen=True)
class Expected:
    """What a CIFAR dataset must be, whatever files it came in."""

    classes: tuple
    counts: dict  # split -> number of images, the same for every class
    mean: tuple  # published channel means and deviations of the training images, scaled to 0..1
    std: tuple
    digests: dict  # split -> content digest, where one is known
    label_column: str  # of the hub's parquet files
    hub: str  # name on the Hugging Face hub
    torchvision: str  # class in torchvision.datasets


EXPECTED = {
    "cifar10": Expected(
        classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        counts={"train": 50_000, "test": 10_000},
        mean=(0.49139968, 0.48215841, 0.44653091),
        std=(0.24703223, 0.24348513, 0.26158784),
        digests={},
        label_column="label",
        hub="uoft-cs/cifar10",
        torchvision="CIFAR10",
    ),
    "cifar100": Expected(
        classes=tuple(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
            castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
            elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
            man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
            pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
            skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
            tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
            """.split()
        ),
        counts={"train": 50_000, "test": 10_000},
        mean=(0.50707516, 0.48654887, 0.44091784),
        std=(0.26733429, 0.25643846, 0.27615047),
        # Measured on a public PNG export of the dataset whose channel means and deviations are the published ones.
        digests={
            "train": "a32922e7edfa2132ad1f48ced9577f771799e787dd371c37e5507bc0ee84193f",
            "test": "71349ebf3fb8ef50c25f20267cb1c184d4da387c87c348ae84719c9604413715",
        },
        label_column="fine_label",
        hub="uoft-cs/cifar100",
        torchvision="CIFAR100",
    ),
}


def home():
    """The folder of everything banlib keeps: $BANLIB_HOME, else the platform's cache folder. Absolute; need not exist."""
    return _folder("BANLIB_HOME", platformdirs.user_cache_dir("banlib", appauthor=False))


def data_folder():
    """Where datasets lie: $BANLIB_DATA, else `data` in `home()`. Absolute; need not exist."""
    return _folder("BANLIB_DATA", home() / "data")


def _folder(variable, default):
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def locate(name):
    """(layout, path) of the files `name` is read from: layout "scikit-learn" (path None), "parquet" or "torchvision".

    None if the data folder does not hold it.
    """
    return _locate(name, data_folder()) if check_name(name) in EXPECTED else ("scikit-learn", None)


def _locate(name, folder):
    if any((folder / name).rglob("*.parquet")):
        return "parquet", folder / name
    unpacked = folder / _torchvision_class(name).base_folder
    return ("torchvision", unpacked) if unpacked.exists() else None


def _torchvision_class(name):
    import torchvision.datasets

    return getattr(torchvision.datasets, EXPECTED[name].torchvision)


def _cifar(name, home_folder, folder):
    """(train, test, their two digests), checked: the decoded tensors if they are there, else from the source."""
    kept = home_folder / "decoded" / f"{name}.safetensors"
    found = _read_decoded(name, kept)
    if found:
        return found
    with contextlib.ExitStack() as stack:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(kept.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:  # a folder that cannot be written, or a disk without locks
            _warn_not_kept(name, kept, error)
            return _from_source(name, folder)
        found = _read_decoded(name, kept)  # another process may have decoded it while this one waited
        if not found:
            found = _from_source(name, folder)
            _write_decoded(name, kept, found)
        return found


def _from_source(name, folder):
    layout, path = _locate(name, folder) or _download(name, folder)
    read = {"parquet": _read_parquet, "torchvision": _read_torchvision}[layout]
    return _checked(name, f"in {path}", {split: read(name, path, split) for split in ("train", "test")})


def _checked(name, where, splits):
    """(train, test, their two digests) in row order, if they are what `name` must be; else DatasetError.

    splits: {"train": (images uint8 [n, 3, 32, 32], labels int64 [n]), "test": ...}; where: for the message.
    """
    expected = EXPECTED[name]
    checked = []
    for split, (images, labels) in splits.items():
        what, count = f"the {split} images of {name} {where}", expected.counts[split]
        if images.shape != (count, 3, 32, 32) or labels.shape != (count,):
            raise _damaged(name, f"{what} have shape {tuple(images.shape)}, expected {(count, 3, 32, 32)}")
        if labels.min() < 0 or labels.max() >= len(expected.classes):
            raise _damaged(name, f"{what} have labels {labels.min()} to {labels.max()}, expected 0 to {len(expected.classes) - 1}")
        ordered, digest = _in_order(images, labels)
        wanted = expected.digests.get(split, digest)
        if digest != wanted:
            raise _damaged(name, f"{what} have content digest {digest}, expected {wanted}: a pixel or a label differs")
        per_class = torch.bincount(labels, minlength=len(expected.classes))
        if per_class.unique().numel() != 1:
            few, many = per_class.min(), per_class.max()
            raise _damaged(name, f"{what} are {few} to {many} per class, expected {count // len(expected.classes)}")
        checked.append((ordered, digest))
    (train, train_digest), (test, test_digest) = checked
    if not expected.digests:
        found = torch.stack(channel_statistics(train.images))
        published = torch.tensor([expected.mean, expected.std], dtype=torch.float64)
        if (found - published).abs().max() > 1e-6:  # the figures in print differ in the seventh digit
            what = f"the train images of {name} {where} have channel means and deviations {found.tolist()}"
            raise _damaged(name, f"{what}, expected {published.tolist()}")
    return train, test, (train_digest, test_digest)


def _damaged(name, what):
    return DatasetError(f"{what}; remove what is damaged and get it again: {_remedy(name)}")


def _remedy(name):
    folder = data_folder()
    return (
        f"`banlib data {name}` downloads it where there is a network, or copy the hub's parquet files ({EXPECTED[name].hub}) "
        f"to {folder / name} or torchvision's folder to {folder / _torchvision_class(name).base_folder}"
    )


# Source 1: the hub's parquet files


def _read_parquet(name, path, split):
    """images uint8 [n, 3, 32, 32], labels int64 [n] of train-*.parquet or test-*.parquet below `path`."""
    column, count = EXPECTED[name].label_column, EXPECTED[name].counts[split]
    shards = [(shard, *_read_shard(name, shard, column)) for shard in _shards(name, path, split)]
    rows = sum(len(labels) for _, _, labels in shards)
    if rows != count:
        raise _damaged(name, f"{path} holds {rows} {split} images of {name}, expected {count}")
    # On two cores a thread pool gained nothing: 0.1 ms an image, most of it in Python.
    images = numpy.empty((count, 32, 32, 3), dtype="uint8")
    encoded = ((f"{shard} row {row}", data) for shard, rows, _ in shards for row, data in enumerate(rows))
    for image, (where, data) in zip(images, encoded):
        image[:] = _decode(name, where, data)
    labels = numpy.concatenate([labels for _, _, labels in shards]).astype("int64")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def _shards(name, path, split):
    """The split's files, all of them: train-00000-of-00003.parquet says how many there must be."""
    found = {}
    for shard in sorted(path.rglob(f"{split}-*.parquet")):
        if shard.name in found:
            raise _damaged(name, f"{shard.name} is there twice, {found[shard.name]} and {shard}")
        found[shard.name] = shard
    totals = [re.search(r"-of-(\d+)\.parquet$", shard) for shard in found]
    wanted = {f"{split}-{n:05d}-of-{t[1]}.parquet" for t in totals if t for n in range(int(t[1]))} or {f"{split}-*.parquet"}
    missing = sorted(wanted - set(found)) if all(totals) else []
    if missing:
        raise _damaged(name, f"{path} lacks {', '.join(missing)}")
    return list(found.values())


def _read_shard(name, shard, column):
    """(encoded images, labels) of one parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(shard).read(columns=["img", column]).flatten()
        encoded, labels = table.column("img.bytes"), table.column(column)
        if encoded.null_count or labels.null_count:
            raise ValueError("there are empty cells")
        return encoded.to_pylist(), labels.to_numpy()
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        size = shard.stat().st_size
        raise _damaged(name, f"{shard} ({size:,} bytes) has no readable columns img.bytes and {column} ({_line(error)})") from error


def _decode(name, where, data):
    """The pixels of a PNG or WebP file: uint8 [32, 32, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            width, height, mode = *image.size, image.mode
            if (width, height, mode) == (32, 32, "RGB"):  # asked before decoding: a small file can hold a huge image
                return numpy.asarray(image)
    except Exception as error:  # Pillow raises a dozen kinds of error at broken files
        raise _damaged(name, f"{where} is no readable image ({_line(error)})") from error
    raise _damaged(name, f"{where} is a {width}x{height} {mode} image, expected 32x32 RGB")


# Source 2: torchvision's folder, which holds pickles


def _read_torchvision(name, path, split):
    """images uint8 [n, 3, 32, 32], labels int64 [n], unpickled by torchvision after every file's MD5 was checked here."""
    kind = _torchvision_class(name)
    _check_md5s(name, path)
    loaded = kind(path.parent, train=split == "train")
    return torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(loaded.targets)


def _check_md5s(name, path):
    from torchvision.datasets.utils import calculate_md5

    kind = _torchvision_class(name)
    for file, wanted in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        if not (path / file).is_file():
            raise _damaged(name, f"{path / file} is missing")
        found = calculate_md5(path / file)
        if found != wanted:
            raise _damaged(name, f"{path / file} has MD5 {found}, expected {wanted}")


# Source 3: torchvision's download


def _download(name, folder):
    """Download into `<name>.part`, check, rename into place; (layout, path). FileNotFoundError if that fails."""
    kind = _torchvision_class(name)
    part, path = folder / f"{name}.part", folder / kind.base_folder
    lock = folder / f"{name}.lock"
    patience = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            try:
                if not path.exists():  # another process may have fetched it while this one waited
                    _remove(part)  # left by a download that was killed
                    socket.setdefaulttimeout(60)  # torchvision sets none: a silent network would hang for ever
                    _fetch(kind, part)
                    os.replace(part / kind.base_folder, path)
            finally:
                socket.setdefaulttimeout(patience)
                _remove(part)
                lock.unlink(missing_ok=True)
    except (OSError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{name} is not in {folder} and its download from {kind.url} failed ({_line(error)}); get it so: {_remedy(name)}"
        ) from error
    return "torchvision", path


def _fetch(kind, part):
    """Download, check and unpack with torchvision. OSError if a checksum is wrong."""
    from torchvision.datasets.utils import calculate_md5

    try:
        kind(part, download=True)  # checks the archive and every file in it before it unpickles one
    except RuntimeError as error:  # torchvision's sign of a wrong checksum, which names neither file nor sums
        archive = part / kind.filename
        found = f"{archive.stat().st_size:,} bytes with MD5 {calculate_md5(archive)}" if archive.is_file() else "nothing"
        raise OSError(f"{error} {kind.filename}: found {found}, expected MD5 {kind.tgz_md5}") from error


def _remove(part):
    if part.is_symlink():
        part.unlink()
    elif part.exists():
        shutil.rmtree(part)


# The decoded tensors: one safetensors file, so that the next load takes a second


def _write_decoded(name, kept, found):
    train, test, digests = found
    tensors = {"train.images": train.images, "train.labels": train.labels, "test.images": test.images, "test.labels": test.labels}
    part = kept.with_suffix(".part")  # under the lock: a fixed name, so that the litter of a kill is overwritten
    try:
        with open(part, "wb") as file:
            file.write(safetensors.torch.save(tensors, metadata={"digests": json.dumps(digests)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, kept)
    except OSError as error:
        part.unlink(missing_ok=True)
        _warn_not_kept(name, kept, error)


def _warn_not_kept(name, kept, error):
    warnings.warn(f"the decoded images of {name} cannot be kept in {kept.parent} ({_line(error)}); each start decodes them again")


def _read_decoded(name, kept):
    """What `_write_decoded` wrote, checked as a source is; None if there is none, or it was damaged (a warning says so)."""
    if not kept.exists():
        return None
    try:
        with safetensors.safe_open(kept, "pt") as file:
            wanted = {f"{split}.{part}" for split in ("train", "test") for part in ("images", "labels")}
            if set(file.keys()) != wanted:
                raise ValueError(f"it holds {sorted(file.keys())}")
            # Copies: safetensors maps the file, and what is used must be what was checked.
            splits = {s: tuple(file.get_tensor(f"{s}.{part}").clone() for part in ("images", "labels")) for s in ("train", "test")}
            digests = json.loads(file.metadata()["digests"])
        for split, (images, labels) in splits.items():
            if images.dtype != torch.uint8 or labels.dtype != torch.int64:
                raise ValueError(f"{split} has types {images.dtype}, {labels.dtype}")
        found = _checked(name, f"in {kept}", splits)
        if list(found[2]) != digests:
            raise ValueError(f"its content digests are {list(found[2])}, expected {digests}")
        return found
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = _line(error).split(";")[0]  # without the remedy: it is applied here
        warnings.warn(f"{kept} is damaged and is made again from the source ({reason})")
        with contextlib.suppress(OSError):
            kept.unlink()
        return None


def _line(error):
    """The first line of an error's text: the message it goes into is one sentence."""
    return str(error).strip().split("\n")[0] or type(error).__name__
