"""Where the datasets come from, and what they must be before they are trusted.

The digits are carried by scikit-learn. CIFAR is looked for, in this order, among the decoded tensors of an earlier
load, in the data folder as the hub's parquet files, there as torchvision's folder; else torchvision downloads it. Rows
are put in the order of their digest lines, so every source gives the same tensors.

CIFAR-100 is checked by content digest. For CIFAR-10 no content digest is known to us: torchvision's files are checked
by their MD5s; parquet files by images per class and by the published channel means and deviations, which would not
notice a few altered pixels. The digest that is found is part of every run's id all the same.
"""

import contextlib
import difflib
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
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy
import platformdirs
import safetensors.torch
import torch

# scikit-learn, pyarrow, Pillow and torchvision are imported where they are used: together they take seconds to load.

DATASETS = ("digits", "cifar10", "cifar100")
# To choose settings on. digits-dev: the same training images, tested on images that the reported test set does not hold.
# cifar100-dev: its training images alone, the first HELD_OUT of each class, by digest, to test on and the others to train on.
DIGITS_DEV, CIFAR_DEV, HELD_OUT = "digits-dev", "cifar100-dev", 50
SPLITS = ("train", "test")


class DatasetError(ValueError):
    """A dataset's files are damaged, incomplete or altered."""


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
            elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
            lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
            pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
            shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
            telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
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

DIGITS_DIGEST = "06042341fe50ad923c370d751890d1179f655d677c2e7c919737fce6eb17f67f"  # of all 1,797, measured


def read(name, home_folder, folder):
    """The checked content of a dataset: {"train": (images uint8 [n, C, H, W], labels int64 [n], digest), "test": ...}.

    Decoded tensors are kept below `home_folder`; files are looked for, and downloaded to, `folder`. Raises DatasetError
    for damaged or altered files, FileNotFoundError if there are none and the download fails.
    """
    if name == CIFAR_DEV:
        return _held_out(*_cifar("cifar100", home_folder, folder)["train"][:2])
    return _cifar(name, home_folder, folder) if name in EXPECTED else _digits(name)


def check_name(name):
    """`name`, if it is a dataset's; else ValueError with the nearest name."""
    names = (*DATASETS, DIGITS_DEV, CIFAR_DEV)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the datasets are {', '.join(DATASETS)}"
    raise ValueError(f"unknown dataset {name!r}; {hint}")


def classes(name):
    """The class names of dataset `name`, in the order of its labels."""
    return tuple("0123456789") if name.startswith("digits") else EXPECTED[name.removesuffix("-dev")].classes


def home():
    """The folder of all that banlib keeps: $BANLIB_HOME, else the platform's cache folder. Absolute; need not exist."""
    return _folder("BANLIB_HOME", platformdirs.user_cache_dir("banlib", appauthor=False))


def data_folder():
    """Where datasets lie: $BANLIB_DATA, else `data` in `home()`. Absolute; need not exist."""
    return _folder("BANLIB_DATA", home() / "data")


def _folder(variable, default):
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def locate(name):
    """(layout, path) of the files `name` is read from: layout "scikit-learn" (no path), "parquet" or "torchvision".

    None if the data folder does not hold it.
    """
    return _locate(name, data_folder()) if check_name(name) in EXPECTED else ("scikit-learn", None)


# Content


def content_digest(images, labels):
    """SHA-256 (hex) of a split's content, whatever its row order and file format.

    Over the sorted lines "<SHA-256 of the image's bytes, row by row, each pixel's channels together> <label>\\n".
    images: uint8 [n, C, H, W]; labels: int64 [n].
    """
    return _digest_of(sorted(_digest_lines(images, labels)))


def _digest_lines(images, labels):
    chunks = (chunk.permute(0, 2, 3, 1).contiguous().numpy() for chunk in images.split(1000))  # not all copied at once
    pixels = (image for chunk in chunks for image in chunk)
    return [f"{hashlib.sha256(image).hexdigest()} {label}\n" for image, label in zip(pixels, labels.tolist())]


def _digest_of(sorted_lines):
    return hashlib.sha256("".join(sorted_lines).encode()).hexdigest()


def _in_order(images, labels):
    """(images, labels, content digest), the rows in the order of their digest lines."""
    lines = _digest_lines(images, labels)
    order = sorted(range(len(lines)), key=lines.__getitem__)
    if order != list(range(len(lines))):  # decoded tensors are in order already
        images, labels = images[order], labels[order]
    return images, labels, _digest_of([lines[row] for row in order])


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 [n, C, H, W] scaled to 0..1: two float64 [C].

    From the counts of the 256 values: exact sums, where a float32 accumulator loses digits.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean, variance.sqrt()


# Digits: carried by scikit-learn


def _digits(name):
    """Trained on: the first 10 of each class, by digest. Of the others the last 1,000 are tested on, 697 chosen on."""
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype("uint8"))[:, None]
    images, labels, digest = _in_order(images, torch.from_numpy(bunch.target.astype("int64")))
    if digest != DIGITS_DIGEST:
        raise DatasetError(
            f"scikit-learn's digits have content digest {digest}, expected {DIGITS_DIGEST}: install scikit-learn again"
        )
    place_in_class = _place_in_class(labels)
    train, rest = (place_in_class <= 10).nonzero()[:, 0], (place_in_class > 10).nonzero()[:, 0]
    test = rest[:-1000] if name == DIGITS_DEV else rest[-1000:]
    return {split: _in_order(images[rows], labels[rows]) for split, rows in zip(SPLITS, (train, test))}


def _place_in_class(labels):
    """For each row the how-manieth of its class it is, from 1: int64 [n]."""
    return torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]


def _held_out(images, labels):
    """CIFAR-100's training images, in the order of their digest lines, split to choose settings on."""
    tested = _place_in_class(labels) <= HELD_OUT
    return {split: _in_order(images[rows], labels[rows]) for split, rows in zip(SPLITS, (~tested, tested), strict=True)}


# CIFAR


def _cifar(name, home_folder, folder):
    """The decoded tensors if they are there, else the source, whose tensors are then kept."""
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
    read_split = {"parquet": _read_parquet, "torchvision": _read_torchvision}[layout]
    return _checked(name, path, {split: read_split(name, path, split) for split in SPLITS})


def _locate(name, folder):
    if any((folder / name).rglob("*.parquet")):
        return "parquet", folder / name
    unpacked = folder / _torchvision_class(name).base_folder
    return ("torchvision", unpacked) if unpacked.exists() else None


def _torchvision_class(name):
    import torchvision.datasets

    return getattr(torchvision.datasets, EXPECTED[name].torchvision)


def _checked(name, path, splits):
    """What `read` returns, if the splits are what `name` must be; else DatasetError. path: for the message.

    splits: {"train": (images, labels), "test": ...} in any row order.
    """
    expected = EXPECTED[name]
    class_count = len(expected.classes)
    checked = {}
    for split, (images, labels) in splits.items():
        count = expected.counts[split]
        what = f"the {split} images of {name} in {path}"
        if images.shape != (count, 3, 32, 32) or labels.shape != (count,):
            raise _damaged(name, f"{what} have shape {tuple(images.shape)}, expected {(count, 3, 32, 32)}")
        if labels.min() < 0 or labels.max() >= class_count:
            found = f"{labels.min()} to {labels.max()}"
            raise _damaged(name, f"{what} have labels {found}, expected 0 to {class_count - 1}")
        checked[split] = _in_order(images, labels)
        digest, wanted = checked[split][2], expected.digests.get(split)
        if wanted and digest != wanted:
            raise _damaged(name, f"{what} have content digest {digest}, expected {wanted}: a pixel or a label differs")
        per_class = torch.bincount(labels, minlength=class_count)
        if per_class.min() != per_class.max():
            found = f"{per_class.min()} to {per_class.max()}"
            raise _damaged(name, f"{what} are {found} per class, expected {count // class_count}")
        if split == "train" and not wanted:
            found = torch.stack(channel_statistics(images))
            published = torch.tensor([expected.mean, expected.std], dtype=torch.float64)
            if (found - published).abs().max() > 1e-6:  # the figures in print differ in the seventh digit
                found, published = found.tolist(), published.tolist()
                raise _damaged(name, f"{what} have channel means and deviations {found}, expected {published}")
    return checked


def _damaged(name, what):
    return DatasetError(f"{what}; remove what is damaged and get it again: {_remedy(name)}")


def _remedy(name):
    folder = data_folder()
    return (
        f"`banlib data {name}` downloads it where there is a network, or copy the hub's parquet files "
        f"({EXPECTED[name].hub}) to {folder / name} or torchvision's folder to "
        f"{folder / _torchvision_class(name).base_folder}"
    )


def _line(error):
    """The first line of an error's text, to go into a sentence."""
    return str(error).strip().split("\n")[0] or type(error).__name__


# Source 1: the hub's parquet files


def _read_parquet(name, path, split):
    """(images uint8 [n, 3, 32, 32], labels int64 [n]) of train-*.parquet or test-*.parquet below `path`."""
    column, count = EXPECTED[name].label_column, EXPECTED[name].counts[split]
    shards = [(shard, *_read_shard(name, shard, column)) for shard in _shards(name, path, split)]
    rows = sum(len(labels) for _, _, labels in shards)
    if rows != count:
        raise _damaged(name, f"{path} holds {rows} {split} images of {name}, expected {count}")
    images = numpy.empty((count, 32, 32, 3), dtype="uint8")
    encoded = ((f"{shard} row {row}", data) for shard, rows, _ in shards for row, data in enumerate(rows))
    for image, (where, data) in zip(images, encoded):  # 0.1 ms each; a thread pool gained nothing on two cores
        image[:] = _decode(name, where, data)
    labels = numpy.concatenate([labels for _, _, labels in shards])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype("int64"))


def _shards(name, path, split):
    """The split's files, all of them: the name train-00000-of-00003.parquet says how many there must be."""
    found = {}
    for shard in sorted(path.rglob(f"{split}-*.parquet")):
        if shard.name in found:
            raise _damaged(name, f"{shard.name} is there twice, {found[shard.name]} and {shard}")
        found[shard.name] = shard
    totals = {int(total[1]) for file in found if (total := re.search(r"-of-(\d{5})\.parquet$", file))}
    wanted = {f"{split}-{number:05d}-of-{total:05d}.parquet" for total in totals for number in range(total)}
    missing = sorted(wanted - set(found)) if found else [f"{split}-*.parquet"]
    if missing:
        raise _damaged(name, f"{path} lacks {', '.join(missing[:5])}")
    return list(found.values())


def _read_shard(name, shard, column):
    """(encoded images, labels) of one parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(shard).read(columns=["img", column]).flatten()
        encoded, labels = table.column("img.bytes"), table.column(column)
        if encoded.null_count or labels.null_count or not pyarrow.types.is_integer(labels.type):
            raise ValueError("cells are empty or labels are no integers")
        return encoded.to_pylist(), labels.to_numpy()
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        what = f"{shard} ({shard.stat().st_size:,} bytes) has no readable columns img.bytes and {column}"
        raise _damaged(name, f"{what} ({_line(error)})") from error


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
    """(images uint8 [n, 3, 32, 32], labels int64 [n]), unpickled by torchvision, after each file's MD5 is checked."""
    from torchvision.datasets.utils import calculate_md5

    kind = _torchvision_class(name)
    for file, wanted in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        if not (path / file).is_file():
            raise _damaged(name, f"{path / file} is missing")
        found = calculate_md5(path / file)
        if found != wanted:
            raise _damaged(name, f"{path / file} has MD5 {found}, expected {wanted}")
    loaded = kind(path.parent, train=split == "train")
    return torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(loaded.targets)


# Source 3: torchvision's download


def _download(name, folder):
    """Download into `<name>.part`, check, rename into place; (layout, path). FileNotFoundError if that fails."""
    kind = _torchvision_class(name)
    part, path, lock = folder / f"{name}.part", folder / kind.base_folder, folder / f"{name}.lock"
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
    except (OSError, NotImplementedError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{name} is not in {folder} and its download from {kind.url} failed ({_line(error)}); "
            f"to get it: {_remedy(name)}"
        ) from error
    return "torchvision", path


def _fetch(kind, part):
    """Download, check and unpack into folder `part` with torchvision. OSError if a checksum is wrong."""
    from torchvision.datasets.utils import calculate_md5

    try:
        kind(part, download=True)  # checks the archive, and every file in it before it unpickles one
    except RuntimeError as error:  # torchvision's sign of a wrong checksum, which names neither file nor sums
        archive = part / kind.filename
        found = f"{archive.stat().st_size:,} bytes, MD5 {calculate_md5(archive)}" if archive.is_file() else "nothing"
        raise OSError(f"{kind.filename}: got {found}, expected MD5 {kind.tgz_md5}") from error


def _remove(part):
    if part.is_symlink():
        part.unlink()
    elif part.exists():
        shutil.rmtree(part)


# Decoded tensors: one safetensors file, so that the next load takes half a second instead of eight


def _write_decoded(name, kept, found):
    tensors = {f"{split}.images": found[split][0] for split in SPLITS}
    tensors |= {f"{split}.labels": found[split][1] for split in SPLITS}
    digests = {split: found[split][2] for split in SPLITS}
    part = kept.with_suffix(".part")  # a fixed name, under the lock: what a kill leaves, the next owner overwrites
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
    what = f"the decoded images of {name} cannot be kept in {kept.parent} ({_line(error)})"
    warnings.warn(f"{what}; every start will decode them again", stacklevel=2)


def _read_decoded(name, kept):
    """What `_write_decoded` wrote, checked as a source is; None if it is not there, or damaged (a warning says so)."""
    if not kept.exists():
        return None
    try:
        with safetensors.safe_open(kept, "pt") as file:
            digests = json.loads(file.metadata()["digests"])
            # Copies: the file is mapped into memory, and what is used must be what was checked.
            splits = {s: tuple(file.get_tensor(f"{s}.{part}").clone() for part in ("images", "labels")) for s in SPLITS}
        for images, labels in splits.values():
            if images.dtype != torch.uint8 or labels.dtype != torch.int64:
                raise ValueError(f"its tensors are {images.dtype} and {labels.dtype}")
        found = _checked(name, kept, splits)
        for split in SPLITS:
            if found[split][2] != digests[split]:
                raise ValueError(f"its {split} images have content digest {found[split][2]}, expected {digests[split]}")
        return found
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = _line(error).split(";")[0]  # without the remedy, which is applied here
        warnings.warn(f"{kept} is damaged and will be made again from the source ({reason})", stacklevel=2)
        with contextlib.suppress(OSError):
            kept.unlink()
        return None
