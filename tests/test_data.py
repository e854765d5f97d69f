"""Datasets as they are handed out, and views."""

import hashlib

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from banlib import data


def reference_view(image, pad, border, dy, dx, flipped):
    """The view of uint8 [C, H, W], by torch's padding, a slice and a flip."""
    size = image.shape[-1]
    mode = {"reflect": "reflect", "zero": "constant"}[border]
    padded = F.pad(image[None].double(), (pad,) * 4, mode=mode)[0]
    view = padded[:, dy : dy + size, dx : dx + size]
    return view.flip(2) if flipped else view


def random_split(count=5, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return data.Split(images, torch.zeros(count, dtype=torch.int64))


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4, 7])
def test_every_view_is_the_padded_image_cut_and_mirrored(pad, flip, border):
    split = random_split()
    augmented = data.Augmented(split, MEAN, STD, pad, flip, border)
    shifts = range(2 * pad + 1)
    wanted = [(dy, dx, flipped) for dy in shifts for dx in shifts for flipped in ([False, True] if flip else [False])]
    # The documented numbering counts through dy, dx, flipped, the last one fastest: every number once.
    assert [augmented.views.number(*view) for view in wanted] == list(range(augmented.count))
    assert augmented.count == len(wanted) == (2 * pad + 1) ** 2 * (1 + flip)
    indices = torch.arange(len(wanted)) % len(split.images)
    batch = augmented.batch(indices, torch.arange(len(wanted)))
    assert batch.dtype == torch.float32 and batch.shape == (len(wanted), 3, 8, 8)
    for number, (dy, dx, flipped) in enumerate(wanted):
        pixels = reference_view(split.images[indices[number]], pad, border, dy, dx, flipped)
        normalised = (pixels / 255 - MEAN[:, None, None].double()) / STD[:, None, None].double()
        torch.testing.assert_close(batch[number].double(), normalised, atol=2e-6, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_the_identity_view_is_the_plain_image(border):
    augmented = data.Augmented(random_split(), MEAN, STD, 2, True, border)
    indices = torch.tensor([3, 0, 3])
    identity = torch.full((3,), augmented.views.identity)
    assert torch.equal(augmented.batch(indices, identity), augmented.plain(indices))
    plain = (random_split().images[indices] / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(augmented.plain(indices), plain, atol=2e-6, rtol=0)


def test_cifar_views_number_162():
    assert data.Views(4, True, "reflect", 32).count == 9 * 9 * 2


@pytest.mark.parametrize("pad", [8, -1, 1.5, True, "1", 10**9])
def test_a_pad_out_of_range_is_refused(pad):
    with pytest.raises(ValueError, match="pad must be an integer from 0 to 7 for 8x8 images"):
        data.Augmented(random_split(), MEAN, STD, pad, True, "reflect")


def test_other_borders_and_flips_are_refused():
    with pytest.raises(ValueError, match="border must be 'reflect' or 'zero', got 'edge'"):
        data.Views(1, True, "edge", 8)
    with pytest.raises(ValueError, match="flip must be True or False, got 'no'"):
        data.Views(1, "no", "zero", 8)


def test_an_index_or_view_out_of_range_is_refused():
    augmented = data.Augmented(random_split(), MEAN, STD, 1, False, "zero")
    for index, view in [(5, 0), (0, 9), (-1, 0), (0, -1)]:
        with pytest.raises((IndexError, RuntimeError)):
            augmented.batch(torch.tensor([index]), torch.tensor([view]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_the_gpu_is_the_batch_on_the_cpu_and_waits_for_nothing():
    split = random_split()
    indices, views = torch.arange(5), torch.arange(5) * 7
    on_cpu = data.Augmented(split, MEAN, STD, 4, True, "reflect").batch(indices, views)
    augmented = data.Augmented(split.to("cuda"), MEAN.cuda(), STD.cuda(), 4, True, "reflect")
    indices, views = indices.cuda(), views.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = augmented.batch(indices, views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-6, rtol=0)


# Datasets


def digit_lines():
    """(line, image, label) of all digits by digest line, from scikit-learn's arrays alone."""
    bunch = load_digits()
    found = []
    for image, label in zip(bunch.images, bunch.target):
        pixels = numpy.array([[round(value * 255 / 16) for value in row] for row in image], dtype="uint8")
        found.append((f"{hashlib.sha256(pixels.tobytes()).hexdigest()} {label}", pixels, int(label)))
    return sorted(found, key=lambda line: line[0])


def test_digits_are_split_by_digest_and_nothing_else():
    lines, seen, train, rest = digit_lines(), dict.fromkeys(range(10), 0), [], []
    for line in lines:
        (train if seen[line[2]] < 10 else rest).append(line)
        seen[line[2]] += 1
    digits, chosen_on = data.load("digits"), data.load("digits-dev")
    for split, wanted in [(digits.train, train), (chosen_on.train, train), (chosen_on.test, rest[:697])]:
        assert torch.equal(split.images, torch.from_numpy(numpy.stack([line[1] for line in wanted]))[:, None])
        assert split.labels.tolist() == [line[2] for line in wanted]
    assert digits.test.labels.tolist() == [line[2] for line in rest[697:]]
    assert len(digits.test.labels) == 1000
    assert torch.equal(digits.test.images[0, 0], torch.from_numpy(rest[697][1]))


def test_digits_carry_their_shape_classes_and_statistics():
    digits = data.load("digits")
    assert (digits.channels, digits.image_size, digits.classes) == (1, 8, tuple("0123456789"))
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert digits.train.labels.bincount().tolist() == [10] * 10
    scaled = digits.train.images.double() / 255
    torch.testing.assert_close(digits.mean.double(), scaled.mean().view(1), atol=1e-7, rtol=0)
    torch.testing.assert_close(digits.std.double(), scaled.std(correction=0).view(1), atol=1e-7, rtol=0)


def test_the_digest_is_of_both_splits():
    digits, chosen_on = data.load("digits"), data.load("digits-dev")
    lines = []
    for split in (digits.train, digits.test):
        digest = hashlib.sha256()
        pairs = zip(split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist())
        for line in sorted(f"{hashlib.sha256(image.tobytes()).hexdigest()} {label}\n" for image, label in pairs):
            digest.update(line.encode())
        lines.append(digest.hexdigest())
    assert digits.digest == hashlib.sha256(f"{lines[0]}\n{lines[1]}".encode()).hexdigest()
    assert digits.digest != chosen_on.digest


def test_a_dataset_is_read_once_and_moves_whole():
    digits = data.load("digits")
    assert data.load("digits") is digits
    moved = digits.to("meta")
    tensors = [moved.train.images, moved.train.labels, moved.test.images, moved.test.labels, moved.mean, moved.std]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.name, moved.digest) == (digits.name, digits.digest)


@pytest.mark.parametrize(
    "name, hint",
    [
        ("cifar-100", "unknown dataset 'cifar-100'; did you mean 'cifar100'?"),
        ("CIFAR10", "unknown dataset 'CIFAR10'; did you mean 'cifar10'?"),
        ("digit", "unknown dataset 'digit'; did you mean 'digits'?"),
        ("imagenet", "unknown dataset 'imagenet'; the datasets are digits, cifar10, cifar100"),
        (7, "unknown dataset 7; the datasets are digits, cifar10, cifar100"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, hint):
    with pytest.raises(ValueError) as caught:
        data.load(name)
    assert str(caught.value) == hint
