"""Datasets by name: the digits, what is known of each without its files, and where files lie."""

import gzip
import hashlib
import types
from pathlib import Path

import numpy
import pytest
import sklearn
import torch
from sklearn.datasets import load_digits

from banlib.runs import cifar, content, datasets
from banlib.runs.recipe import BadInput


def digit_lines():
    """(line, image, label) of all digits by digest line, from scikit-learn's arrays alone."""
    bunch = load_digits()
    found = []
    for image, label in zip(bunch.images, bunch.target, strict=True):
        pixels = numpy.array([[round(value * 255 / 16) for value in row] for row in image], dtype="uint8")
        found.append((f"{hashlib.sha256(pixels.tobytes()).hexdigest()} {label}", pixels, int(label)))
    return sorted(found, key=lambda line: line[0])


def test_digits_are_split_by_digest_and_nothing_else():
    lines, seen, train, rest = digit_lines(), dict.fromkeys(range(10), 0), [], []
    for line in lines:
        (train if seen[line[2]] < 10 else rest).append(line)
        seen[line[2]] += 1
    digits, chosen_on = datasets.load("digits"), datasets.load("digits-dev")
    for split, wanted in [(digits.train, train), (chosen_on.train, train), (chosen_on.test, rest[:697])]:
        assert torch.equal(split.images, torch.from_numpy(numpy.stack([line[1] for line in wanted]))[:, None])
        assert split.labels.tolist() == [line[2] for line in wanted]
    assert digits.test.labels.tolist() == [line[2] for line in rest[697:]]
    assert len(digits.test.labels) == 1000
    assert torch.equal(digits.test.images[0, 0], torch.from_numpy(rest[697][1]))


@pytest.mark.parametrize("found", [None, "missing", "cut", "other"])
def test_digits_that_cannot_be_read_are_one_sentence(tmp_path, monkeypatch, found):
    """Without scikit-learn, without its file, and with a file that was cut or altered."""
    file = tmp_path / "datasets/data/digits.csv.gz"
    file.parent.mkdir(parents=True)
    whole = Path(sklearn.__path__[0], "datasets/data/digits.csv.gz").read_bytes()
    if found == "cut":
        file.write_bytes(whole[:-1000])
    if found == "other":
        file.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"16", b"15", 1)))
    place = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if found else None
    monkeypatch.setattr(datasets, "find_spec", lambda name: place)
    with pytest.raises(datasets.DatasetError, match="^scikit-learn's digits [^\n]+: install scikit-learn again$"):
        datasets.digits("digits")


def test_digits_carry_their_shape_classes_and_statistics():
    digits = datasets.load("digits")
    assert (digits.channels, digits.image_size, digits.classes) == (1, 8, tuple("0123456789"))
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert digits.train.labels.bincount().tolist() == [10] * 10
    scaled = digits.train.images.double() / 255
    torch.testing.assert_close(digits.mean.double(), scaled.mean().view(1), atol=1e-7, rtol=0)
    torch.testing.assert_close(digits.std.double(), scaled.std(correction=0).view(1), atol=1e-7, rtol=0)


def test_the_digest_is_of_both_splits():
    digits, chosen_on = datasets.load("digits"), datasets.load("digits-dev")
    lines = []
    for split in (digits.train, digits.test):
        digest = hashlib.sha256()
        pairs = zip(split.images.permute(0, 2, 3, 1).contiguous().numpy(), split.labels.tolist(), strict=True)
        for line in sorted(f"{hashlib.sha256(image.tobytes()).hexdigest()} {label}\n" for image, label in pairs):
            digest.update(line.encode())
        lines.append(digest.hexdigest())
    assert digits.digest == hashlib.sha256(f"{lines[0]}\n{lines[1]}".encode()).hexdigest()
    assert digits.digest != chosen_on.digest


def test_a_dataset_is_read_once_and_moves_whole():
    digits = datasets.load("digits")
    assert datasets.load("digits") is digits
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
        ("imagenet", "unknown dataset 'imagenet'; did you mean "),
        (7, "unknown dataset 7; did you mean "),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, hint):
    with pytest.raises(BadInput) as caught:
        datasets.load(name)
    said = str(caught.value)
    assert said.startswith(hint) and said.endswith("(one of: digits, cifar10, cifar100, digits-dev, cifar100-dev)")


def test_digits_that_are_not_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setattr(datasets, "DIGITS_DIGEST", "0" * 64)
    datasets._load.cache_clear()
    with pytest.raises(content.DatasetError, match="content digest [0-9a-f]{64}, expected 0{64}"):
        datasets.load("digits")


def test_facts_are_those_of_the_dataset():
    digits = datasets.load("digits")
    assert datasets.facts("digits") == (digits.digest, 100, 1, 8, 10)
    assert str(datasets.facts("digits")) == "1x8x8 images of 10 classes"


def test_cifar100_is_planned_without_its_files(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: pytest.fail(f"{name} was loaded, and would be downloaded"))
    digests = cifar.EXPECTED["cifar100"].digests
    of_both = hashlib.sha256(f"{digests['train']}\n{digests['test']}".encode()).hexdigest()
    assert datasets.facts("cifar100") == (of_both, 50_000, 3, 32, 100)
    assert datasets.facts("cifar100-dev")[1:] == (45_000, 3, 32, 100)
    assert datasets.facts("cifar100-dev").digest != of_both


def test_cifar100_dev_is_split_by_digest_order(monkeypatch):
    """Of 300 images of 3 classes the first 50 of each, by digest, are tested on, and the others trained on."""
    images = torch.randint(256, (300, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = content.in_order(images, torch.arange(300) % 3)
    monkeypatch.setattr(cifar, "read", lambda *args: {"train": whole, "test": None})
    datasets._load.cache_clear()
    dev = datasets.load("cifar100-dev")
    datasets._load.cache_clear()
    seen, test = dict.fromkeys(range(3), 0), []
    for row, label in enumerate(whole[1].tolist()):
        if seen[label] < 50:
            test.append(row)
        seen[label] += 1
    train = [row for row in range(300) if row not in test]
    for split, rows in [(dev.train, train), (dev.test, test)]:
        assert torch.equal(split.images, whole[0][rows]) and torch.equal(split.labels, whole[1][rows])
    assert dev.test.labels.bincount().tolist() == [50] * 3 and len(dev.train.labels) == 150


def test_folders_come_from_the_environment_then_the_platform(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BANLIB_HOME", "here")
    monkeypatch.delenv("BANLIB_DATA", raising=False)
    assert datasets.home() == tmp_path / "here" and datasets.data_folder() == tmp_path / "here" / "data"
    monkeypatch.setenv("BANLIB_DATA", str(tmp_path / "there"))
    assert datasets.data_folder() == tmp_path / "there"
    monkeypatch.setenv("BANLIB_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert datasets.home().is_absolute() and datasets.home() != tmp_path and "banlib" in datasets.home().parts


def test_data_needs_no_home_where_its_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "home", lambda: pytest.fail("the home was asked for"))
    monkeypatch.setenv("BANLIB_DATA", str(tmp_path))
    assert datasets.data_folder() == tmp_path
