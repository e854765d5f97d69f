"""CIFAR-10 and CIFAR-100, in the files that people have them in.

The data folder is searched for the hub's parquet files, torchvision's folder (Kaggle has the same
files) and its archive, which else is downloaded. Rows are put in the order of their digest lines,
so all give the same tensors. CIFAR-100 is checked by content digest. For CIFAR-10 none is known to
us: torchvision's files are checked by MD5, parquet files by counts and published channel statistics
alone, which would not notice a few altered pixels; the digest is part of a run's id all the same.
"""

import contextlib
import functools
import http.client
import io
import os
import re
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import filelock
import numpy
import torch
from tqdm import tqdm

from banlib.runs import content
from banlib.runs.content import SPLITS, DatasetError, line
from banlib.runs.disk import discard, room

# pyarrow, Pillow and torchvision are imported where they are used: they take seconds to load.

COUNTS = {"train": 50_000, "test": 10_000}
TEN = "airplane automobile bird cat deer dog frog horse ship truck"
HUNDRED = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
DIGESTS = {  # measured on a public PNG export, whose channel statistics are the published ones
    "train": "a32922e7edfa2132ad1f48ced9577f771799e787dd371c37e5507bc0ee84193f",
    "test": "71349ebf3fb8ef50c25f20267cb1c184d4da387c87c348ae84719c9604413715",
}
MEAN, STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)  # CIFAR-10's


class Expected(NamedTuple):
    """What a CIFAR dataset must be, whatever files it came in."""

    classes: tuple
    label: str  # its column in the hub's files
    digests: dict  # split -> content digest, where one is known
    statistics: tuple = ()  # else published means and deviations of the training images / 255
    counts: dict = COUNTS  # split -> number of images, the same for every class


EXPECTED = {
    "cifar10": Expected(tuple(TEN.split()), "label", {}, (MEAN, STD)),
    "cifar100": Expected(tuple(HUNDRED.split()), "fine_label", DIGESTS),
}


def read(name, home, folder):
    """{"train": (images uint8 [n, 3, 32, 32], labels int64 [n], digest), "test": ...}, checked.

    Decoded images are kept below `home`; files are looked for in `folder`, or downloaded to it.
    Raises DatasetError for damaged or altered files, FileNotFoundError if there are none and the
    download fails.
    """
    kept = home / "decoded" / f"{name}.safetensors"
    check = functools.partial(checked, name, kept)
    if found := content.read_decoded(kept, check):
        return found
    with alone(kept.with_suffix(".lock")):  # another process may have decoded it meanwhile
        found = content.read_decoded(kept, check) or read_files(name, kept, folder)
        if not kept.exists():
            content.write_decoded(kept, found)
        return found


@contextlib.contextmanager
def alone(lock):
    """Hold a kernel lock; where there is none, go on: at worst, work is done twice."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(lock))
        yield


def read_files(name, kept, folder):
    part = kept.with_suffix(".unpacked")
    try:
        layout, path, shards = find(name, folder) or download(name, folder)
        place = unpack(name, path, part) if layout == "archive" else path
        read_split = read_parquet if layout == "parquet" else read_torchvision
        splits = {split: read_split(name, place, split, shards) for split in SPLITS}
        return checked(name, path, splits)
    except DatasetError as error:
        advice = f"put that right or move it away and get it again: {remedy(name, folder)}"
        raise DatasetError(f"{error}; {advice}") from error
    finally:
        discard(part)


def checked(name, path, splits, digests=None):
    """What `read` returns, if the splits are what `name` must be; else DatasetError, naming path.

    splits: {"train": (images, labels), "test": ...} in any row order; digests: split -> what its
    digest must be, beside those that are expected anyway.
    """
    expected, found = EXPECTED[name], {}
    classes, digests = len(expected.classes), (digests or {}) | expected.digests
    for split, (images, labels) in splits.items():
        what, each = f"the {split} images of {name} in {path}", expected.counts[split] // classes
        values, share = labels.unique(return_counts=True)
        if (values.tolist(), share.tolist()) != (list(range(classes)), [each] * classes):
            has = f"labels {values.min()} to {values.max()}, {share.min()} to {share.max()} of each"
            raise DatasetError(f"{what} have {has}; expected 0 to {classes - 1}, {each} of each")
        found[split] = content.in_order(images, labels)
        digest = found[split][2]
        if (wanted := digests.get(split, digest)) != digest:
            has = f"content digest {digest}, expected {wanted}"
            raise DatasetError(f"{what} have {has}: a pixel or a label differs")
        if split == "train" and expected.statistics:
            measured = torch.stack(content.channel_statistics(images))
            if (measured - torch.tensor(expected.statistics).double()).abs().max() > 1e-6:
                has = f"channel means and deviations {measured.tolist()}"
                raise DatasetError(f"{what} have {has}, expected {expected.statistics}")
    return found


def remedy(name, folder):
    return (
        f"`banlib data {name}` downloads it where there is a network, or copy the hub's parquet "
        f"files (uoft-cs/{name}) or torchvision's folder or archive to {folder / name}"
    )


def torchvision_class(name):
    import torchvision.datasets

    return getattr(torchvision.datasets, name.upper())


class Source(NamedTuple):
    layout: str  # "parquet", "torchvision" or "archive"
    path: Path
    shards: dict = {}  # of parquet files: split -> files


def find(name, folder):
    """The first complete Source in the data folder, or None; DatasetError if all are incomplete."""
    kind = torchvision_class(name)
    members, tables, found, lacks = dict(members_of(kind)), {}, [], []
    archive = rf"{kind.filename.partition('.')[0]}.*(\.gz|\.tgz)(\.\d)?"  # or a browser's "(1)"
    for path, files in places(name, folder):
        for file in files:
            split = split_of(file) or split_of(path.name)
            if split and file.lower().endswith(".parquet"):
                base = path if split_of(file) else path.parent
                tables.setdefault(base, {}).setdefault(split, []).append(path / file)
            elif re.fullmatch(archive, file):
                found.append(Source("archive", path / file))
        missing = [member for member in members if member not in files]
        if not missing:
            found.append(Source("torchvision", path))
        elif len(missing) < len(members):
            lacks.append(f"{path / missing[0]} is missing")
    for base, shards in tables.items():
        if missing := missing_shards(shards):
            lacks.append(f"{base} lacks {', '.join(missing[:5])}")
        else:
            return Source("parquet", base, shards)
    if lacks and not found:
        raise DatasetError("; ".join(lacks[:3]))
    return max(found, key=lambda source: source.layout, default=None)  # unpacked, if it is


def places(name, folder):
    """(folder, its files) wherever `name` may lie: in folders named after it, or the data folder.

    Links are followed, and no folder is seen twice.
    """
    inner = [folder, *folder.glob("*"), *folder.glob("uoft-cs/*")]
    roots = sorted((path for path in inner if mentions(path, name)), key=lambda p: p.name != name)
    if not any(mentions(folder, other) for other in EXPECTED):
        roots += [folder / part for part in ("", "train", "test", "archive")]
    seen = set()
    for root in roots:
        for path, below, files in os.walk(root, followlinks=True):
            path, real = Path(path), os.path.realpath(path)
            deep = len(path.relative_to(root).parts) >= 5 or not mentions(root, name)
            below[:] = [] if deep or real in seen else sorted(below)
            if real not in seen:
                yield path, sorted(file for file in files if file[0] != ".")
            seen.add(real)


def mentions(path, name):
    """Whether a path's last part has the name in it, as "CIFAR-100-python" has cifar100."""
    return bool(re.search(rf"{name}(?!\d)", re.sub("[^a-z0-9]", "", path.name.lower())))


def split_of(word):
    found = re.search(r"(?<![a-z])(train|test)(?![a-z])", word.lower())
    return found and found[1]


def missing_shards(shards):
    """What a set of parquet files lacks: train-00000-of-00003.parquet says how many there are."""
    missing = [f"{split}*.parquet" for split in SPLITS if split not in shards]
    names = {file.name for files in shards.values() for file in files}
    for name in sorted(names):
        if match := re.fullmatch(r"(.*)\d{5}(-of-(\d{5}).*)", name):
            first, rest, total = match.groups()
            wanted = {f"{first}{n:05d}{rest}" for n in range(int(total))}
            missing += sorted(wanted - names - {*missing})
    return missing


def check_file(file):
    """DatasetError for what lies in a file's place: a dangling link, a pointer, a web page."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(200).lstrip().lower()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read ({line(error)})") from error
    if start.startswith(b"version https://git-lfs"):
        raise DatasetError(f"{file} is a git-lfs pointer: run `git lfs pull` in {file.parent}")
    if start.startswith((b"<!doc", b"<html")):
        raise DatasetError(f"{file} is a web page, not the file of that name")


def read_parquet(name, path, split, shards):
    """(images uint8 [n, 3, 32, 32], labels int64 [n])."""
    cells, labels, count = [], [], EXPECTED[name].counts[split]
    for file in shards[split]:
        encoded, numbers = read_shard(name, file)
        cells += [(f"{file} row {row}", data) for row, data in enumerate(encoded)]
        labels += numbers
    if len(cells) != count:
        raise DatasetError(f"{path} holds {len(cells)} {split} images, expected {count}")
    images = numpy.stack([decode(*cell) for cell in cells])  # a thread pool gained nothing
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def read_shard(name, file):
    """(encoded images, labels) of one parquet file, whatever the two columns are called."""
    import pyarrow.parquet

    check_file(file)
    wanted = ("img.bytes", "image.bytes", "img", "image"), (EXPECTED[name].label, "label", "labels")
    try:
        table = pyarrow.parquet.ParquetFile(file).read().flatten()
        has = table.column_names
        found = (next((c for c in names if c in has), " or ".join(names)) for names in wanted)
        cells, labels = map(table.column, found)
        if cells.null_count or labels.null_count or not pyarrow.types.is_integer(labels.type):
            raise ValueError("cells are empty or labels are no integers")
        return cells.to_pylist(), labels.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        what = f"{file} ({file.stat().st_size:,} bytes) has no readable columns"
        raise DatasetError(f"{what} of images and labels ({line(error)})") from error


def decode(where, data):
    """The pixels of a PNG or WebP file: uint8 [32, 32, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            width, height, mode = *image.size, image.mode
            if (width, height, mode) == (32, 32, "RGB"):  # before decoding: it could be huge
                return numpy.asarray(image)
    except Exception as error:  # Pillow raises a dozen kinds of error at broken files
        raise DatasetError(f"{where} is no readable image ({line(error)})") from error
    raise DatasetError(f"{where} is a {width}x{height} {mode} image, expected 32x32 RGB")


def members_of(kind):
    return [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]


def check_md5(file, wanted):
    from torchvision.datasets.utils import calculate_md5

    check_file(file)
    if (found := calculate_md5(file)) != wanted:
        size = f"{file.stat().st_size:,} bytes"
        raise DatasetError(f"{file} ({size}) has MD5 {found}, expected {wanted}")


def read_torchvision(name, path, split, _):
    """As `read_parquet`; unpickled by torchvision, after each file's MD5 is checked."""
    kind = torchvision_class(name)
    for file, wanted in members_of(kind):
        check_md5(path / file, wanted)
    here = type(kind.__name__, (kind,), {"base_folder": path.name})
    loaded = here(path.parent, train=split == "train")
    images = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(loaded.targets)


def unpack(name, archive, part):
    """Unpack torchvision's archive into folder `part`; returns its folder there."""
    kind = torchvision_class(name)
    check_md5(archive, kind.tgz_md5)
    discard(part)  # of a reader that was killed
    part.parent.mkdir(parents=True, exist_ok=True)
    with room(part.parent, 200_000_000), tarfile.open(archive) as tar:
        tar.extractall(part, filter="data")
    return part / kind.base_folder


def download(name, folder):
    """Fetch torchvision's archive into the data folder; FileNotFoundError if that fails."""
    kind = torchvision_class(name)
    archive, part = folder / kind.filename, folder / f"{kind.filename}.part"
    request = urllib.request.Request(kind.url, headers={"User-Agent": "banlib"})
    try:
        lock = alone(folder / f".{name}.lock")
        with lock, room(folder, 170_000_000), contextlib.ExitStack() as leaving:
            leaving.callback(part.unlink, missing_ok=True)
            if not archive.exists():  # another process may have fetched it meanwhile
                part.unlink(missing_ok=True)  # of a download that was killed; or a planted link
                with urllib.request.urlopen(request, timeout=60) as reply, open(part, "xb") as file:
                    size = int(reply.headers.get("Content-Length") or 0) or None
                    with tqdm.wrapattr(reply, "read", size, desc=kind.filename) as counted:
                        shutil.copyfileobj(counted, file, 2**15)
                check_md5(part, kind.tgz_md5)
                os.replace(part, archive)
        return Source("archive", archive)
    except (OSError, http.client.HTTPException, DatasetError) as error:
        there = ", ".join(sorted(path.name for path in folder.glob("[!.]*"))[:5])
        where = f"{name} is not in {folder}" + (f" (which holds {there})" if there else "")
        failed = f"its download from {kind.url} failed ({line(error)})"
        sentence = f"{where} and {failed}; to get it: {remedy(name, folder)}"
        raise FileNotFoundError(sentence) from error
