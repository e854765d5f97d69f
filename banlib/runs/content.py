"""What a split of images holds, whatever files it came in, and the decoded copy that is kept."""

import contextlib
import hashlib
import json
import warnings

import torch

from banlib.runs.disk import write_atomically
from banlib.runs.work import header, packed, unpacked

SPLITS = ("train", "test")


class DatasetError(ValueError):
    """A dataset's files are damaged, incomplete or altered."""


def in_order(images, labels):
    """(images, labels, content digest), the rows in the order of their digest lines.

    images: uint8 [n, C, H, W]; labels: int64 [n]. A line is "<SHA-256 of the image's bytes, row by
    row, channels last> <label>\\n"; the digest is the SHA-256 of all lines, sorted.
    """
    chunks = (part.permute(0, 2, 3, 1).contiguous().numpy() for part in images.split(1000))
    pixels = (image for chunk in chunks for image in chunk)  # never all copied at once
    pairs = zip(pixels, labels.tolist(), strict=True)
    lines = [f"{hashlib.sha256(image).hexdigest()} {label}\n" for image, label in pairs]
    order = sorted(range(len(lines)), key=lines.__getitem__)
    if order != list(range(len(lines))):  # decoded images are in order already
        images, labels = images[order], labels[order]
    return images, labels, digest_of([lines[row] for row in order])


def digest_of(lines):
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def place_in_class(labels):
    """Of each row, how many of its class there are up to it, itself included: int64 [n]."""
    return torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]


def channel_statistics(images):
    """Mean and standard deviation per channel of uint8 [n, C, H, W] scaled to 0..1: float64 [C].

    From the counts of the 256 values: exact sums, where a float32 accumulator loses digits.
    """
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    counts, values = torch.stack(counts).double(), torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    return mean, variance.sqrt()


def write_decoded(kept, found):
    """Keep checked splits in one safetensors file, which loads in half a second instead of eight.

    found: split -> (images, labels, digest).
    """
    tensors = {f"{split}.images": images for split, (images, _, _) in found.items()}
    tensors |= {f"{split}.labels": labels for split, (_, labels, _) in found.items()}
    digests = json.dumps({split: digest for split, (_, _, digest) in found.items()})
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, packed(tensors, {"digests": digests}))
    except OSError as error:
        what = f"decoded images cannot be kept in {kept.parent} ({line(error)})"
        warnings.warn(f"{what}; every start will decode them again", stacklevel=2)


def read_decoded(kept, check):
    """check(splits, digests) of what `write_decoded` kept; None if that is missing or damaged."""
    if not kept.exists():
        return None
    try:
        raw, splits = kept.read_bytes(), {}
        digests, tensors = json.loads(header(raw)["__metadata__"]["digests"]), unpacked(raw)
        for split in SPLITS:
            images = tensors[f"{split}.images"].byte().reshape(-1, 3, 32, 32)
            splits[split] = images, tensors[f"{split}.labels"].long()
        return check(splits, digests)
    except Exception as error:  # safetensors, JSON and torch raise a dozen kinds at broken files
        what = f"{kept} is damaged and will be made again from the source ({line(error)})"
        warnings.warn(what, stacklevel=2)
        with contextlib.suppress(OSError):
            kept.unlink()
        return None


def line(error):
    """The first line of an error's text, to go into a sentence."""
    return str(error).strip().split("\n")[0] or type(error).__name__
