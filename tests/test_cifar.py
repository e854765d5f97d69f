"""Where CIFAR comes from: a tiny CIFAR-100 of 4 classes in every layout, whole and broken; the real one where it is."""

import concurrent.futures
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
import warnings
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from banlib.runs import cifar, content, datasets
from banlib.runs.content import DatasetError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
COUNTS = {"train": 40, "test": 20}
CLASSES = ("apple", "bear", "cat", "dog")
ARCHIVE = "cifar-100-python.tar.gz"


@pytest.fixture(scope="module")
def tiny():
    """split -> (images uint8 [n, 32, 32, 3], labels): random pixels, each channel its own."""
    generator = numpy.random.default_rng(0)
    return {
        split: (generator.integers(0, 200 + split_number, (count, 32, 32, 3), dtype="uint8"), numpy.arange(count) % 4)
        for split_number, (split, count) in enumerate(COUNTS.items())
    }


def reference_digest(images, labels):
    """As the dataset's description words it: images uint8 [n, 32, 32, 3]."""
    lines = [f"{hashlib.sha256(image.tobytes()).hexdigest()} {label}\n" for image, label in zip(images, labels, strict=True)]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@pytest.fixture
def place(tmp_path, monkeypatch, tiny):
    """Empty folders; cifar100 and cifar10 expected to be the tiny set; no download works. `.data`, `.home`."""
    folders = types.SimpleNamespace(data=tmp_path / "the 'data' für alle", home=tmp_path / "home")
    folders.data.mkdir()
    monkeypatch.setenv("BANLIB_DATA", str(folders.data))
    monkeypatch.setenv("BANLIB_HOME", str(folders.home))
    scaled = tiny["train"][0] / 255
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("cifar10", "cifar100"):
        digests = {split: reference_digest(*content) for split, content in tiny.items()} if name == "cifar100" else {}
        statistics = () if digests else (tuple(scaled.mean((0, 1, 2))), tuple(scaled.std((0, 1, 2))))
        expected = cifar.EXPECTED[name]._replace(classes=CLASSES, counts=COUNTS, digests=digests, statistics=statistics)
        monkeypatch.setitem(cifar.EXPECTED, name, expected)
        monkeypatch.setattr(cifar.torchvision_class(name), "url", f"http://127.0.0.1:1/{name}")
    return folders


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def write_parquet(folder, content, label="fine_label", kind="PNG", shards=2):
    """The hub's layout: `shards` train files, one test file."""
    folder.mkdir(parents=True)
    for split, (images, labels) in content.items():
        parts = shards if split == "train" else 1
        for part in range(parts):
            cells = [{"bytes": encoded(image, kind), "path": None} for image in images[part::parts]]
            table = pyarrow.table({"img": cells, label: labels[part::parts], "coarse_label": labels[part::parts]})
            pyarrow.parquet.write_table(table, folder / f"{split}-{part:05d}-of-{parts:05d}.parquet")


def write_torchvision(folder, content, monkeypatch):
    """torchvision's layout of CIFAR-100, and the MD5s of these files in torchvision's class."""
    kind = torchvision.datasets.CIFAR100
    base = folder / kind.base_folder
    base.mkdir(parents=True)
    for split, (images, labels) in content.items():
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)  # a row holds all red, all green, all blue
        (base / split).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels.tolist()}))
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CLASSES)}))
    md5 = {file: hashlib.md5((base / file).read_bytes()).hexdigest() for file in ("train", "test", "meta")}
    monkeypatch.setattr(kind, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(kind, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    return base


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends files whole; or, if `server.broken` says so, half of each and then closes, or says nothing more."""

    def copyfile(self, source, outputfile):
        whole = source.read()
        outputfile.write(whole[: len(whole) // 2] if self.server.broken else whole)
        outputfile.flush()
        if self.server.broken == "stalls":
            self.server.test_is_over.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(place, tiny, tmp_path, monkeypatch):
    """The tiny set's archive at a local address that torchvision's class names. `.broken`: None, "closes", "stalls"."""
    kind, folder = torchvision.datasets.CIFAR100, tmp_path / "served"
    base = write_torchvision(folder, tiny, monkeypatch)
    archive = folder / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, arcname=kind.base_folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    server.archive, server.broken, server.test_is_over = archive, None, threading.Event()
    monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.test_is_over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def load(name="cifar100"):
    """`datasets.load`, as a fresh process would."""
    datasets._load.cache_clear()
    return datasets.load(name)


def refused(*words, error=DatasetError, name="cifar100"):
    """That loading fails with one sentence that holds `words`, keeping nothing decoded; the sentence."""
    with pytest.raises(error) as caught:
        load(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 1500
    for word in [*words, str(datasets.data_folder()), f"banlib data {name}"]:
        assert str(word) in sentence
    assert not (datasets.home() / "decoded" / f"{name}.safetensors").exists()
    return sentence


def same(one, other):
    return all(
        torch.equal(getattr(getattr(one, split), part), getattr(getattr(other, split), part))
        for split in ("train", "test")
        for part in ("images", "labels")
    )


# Whole


def test_every_layout_gives_the_same_tensors(place, tiny, monkeypatch):
    shuffled = {split: (images[::-1], labels[::-1]) for split, (images, labels) in tiny.items()}
    write_parquet(place.data / "cifar100" / "cifar100", tiny, kind="PNG")
    png = load()
    assert datasets.locate("cifar100") == ("parquet", place.data / "cifar100" / "cifar100")
    shutil.rmtree(place.home)
    shutil.rmtree(place.data / "cifar100")
    write_parquet(place.data / "cifar100", shuffled, kind="WebP", shards=3)
    webp = load()
    shutil.rmtree(place.home)
    shutil.rmtree(place.data / "cifar100")
    base = write_torchvision(place.data, shuffled, monkeypatch)
    pickled = load()
    assert datasets.locate("cifar100") == ("torchvision", base)
    decoded = load()  # the fourth source: what the third load kept
    assert same(png, webp) and same(png, pickled) and same(png, decoded)
    assert png.digest == webp.digest == pickled.digest == decoded.digest
    assert png.classes == pickled.classes == CLASSES


def test_rows_stand_in_the_order_of_their_digests_with_their_labels_and_channels(place, tiny):
    write_parquet(place.data / "cifar100", tiny)
    loaded = load()
    for split, (images, labels) in tiny.items():
        order = sorted(range(len(labels)), key=lambda row: hashlib.sha256(images[row].tobytes()).hexdigest())
        found = getattr(loaded, split)
        assert numpy.array_equal(found.images.permute(0, 2, 3, 1).numpy(), images[order])
        assert found.labels.tolist() == labels[order].tolist()
    assert (loaded.channels, loaded.image_size) == (3, 32)
    numpy.testing.assert_allclose(loaded.mean, (tiny["train"][0] / 255).mean((0, 1, 2)), atol=1e-7)
    numpy.testing.assert_allclose(loaded.std, (tiny["train"][0] / 255).std((0, 1, 2)), atol=1e-7)


def test_the_content_digest_is_the_described_one_and_ignores_row_order(tiny):
    images, labels = tiny["test"]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    wanted = reference_digest(images, labels)
    assert content.in_order(tensor, torch.from_numpy(labels))[2] == wanted
    assert content.in_order(tensor.flip(0), torch.from_numpy(labels).flip(0))[2] == wanted
    assert content.in_order(tensor.flip(1), torch.from_numpy(labels))[2] != wanted


def test_cifar10_reads_the_hub_layout_with_its_own_label_column(place, tiny):
    write_parquet(place.data / "cifar10", tiny, label="label")
    assert load("cifar10").train.images.shape == (40, 3, 32, 32)


# Files as people have them


def write_tables(folder, content, names="{split}.parquet", image="img", label="fine_label", flat=False):
    """One parquet file for each split; flat: the encoded image itself in its column, not a struct."""
    for split, (images, labels) in content.items():
        path = folder / names.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [encoded(picture) if flat else {"bytes": encoded(picture), "path": None} for picture in images]
        pyarrow.parquet.write_table(pyarrow.table({image: cells, label: labels}), path)


def parquet_layout(place, tiny, layout, monkeypatch):
    data, base, elsewhere = place.data, place.data / "cifar100", place.home.parent / "elsewhere"
    if layout == "the hub's converted files":
        write_tables(base, tiny, "cifar100/{split}/0000.parquet")
    elif layout == "converted files, unwrapped":
        write_tables(base, tiny, "{split}/0000.parquet", image="image", label="label")
    elif layout == "one file for each split":
        write_tables(base, tiny)
    elif layout == "named after the dataset":
        write_tables(base, tiny, "CIFAR100-{split}.parquet")
    elif layout == "image and label":
        write_tables(base, tiny, image="image", label="label")
    elif layout == "image and fine_label":
        write_tables(base, tiny, image="image")
    elif layout == "images as plain bytes":
        write_tables(base, tiny, image="image", flat=True)
    elif layout == "label of the coarse classes beside fine_label":
        write_parquet(base, tiny)
        for shard in base.glob("*.parquet"):
            table = pyarrow.parquet.read_table(shard)
            pyarrow.parquet.write_table(table.rename_columns(["img", "fine_label", "label"]), shard)
    elif layout == "a link for the folder":
        write_parquet(elsewhere, tiny)
        base.symlink_to(elsewhere)
    elif layout == "a link for the inner folder":
        write_parquet(elsewhere, tiny)
        base.mkdir()
        (base / "data").symlink_to(elsewhere)
    elif layout == "links that go round in circles":
        write_parquet(base / "data", tiny)
        (base / "again").symlink_to(base)
        (base / "data" / "up").symlink_to(data)
    elif layout == "the hub's cache":
        write_parquet(elsewhere, tiny)
        snapshot = data / "datasets--uoft-cs--cifar100" / "snapshots" / "aadb3af7" / "cifar100"
        snapshot.mkdir(parents=True)
        for shard in elsewhere.glob("*.parquet"):
            (snapshot / shard.name).symlink_to(shard)
    elif layout == "a clone with its owner's folder":
        write_parquet(data / "uoft-cs" / "cifar100" / "cifar100", tiny)
    elif layout == "capital letters":
        write_parquet(data / "CIFAR-100", tiny)
    elif layout == "a Mac's shadow files":
        write_parquet(base, tiny)
        (base / "._train-00000-of-00002.parquet").write_bytes(b"Mac OS X")
    elif layout == "beside an incomplete set":
        write_parquet(base / "a", {"train": tiny["train"]})
        write_parquet(base / "b", tiny)
    elif layout == "BANLIB_DATA names the inner folder":
        write_parquet(elsewhere / "cifar100", tiny)
        monkeypatch.setenv("BANLIB_DATA", str(elsewhere / "cifar100"))
    elif layout == "BANLIB_DATA names the folder of the files":
        write_tables(elsewhere, tiny, "{split}/0000.parquet")
        monkeypatch.setenv("BANLIB_DATA", str(elsewhere))
    elif layout == "CIFAR-10 beside it":
        write_parquet(data / "cifar10", tiny, label="label")
        write_parquet(base, tiny)
    else:
        raise AssertionError(layout)


@pytest.mark.parametrize("layout", [
    "the hub's converted files", "converted files, unwrapped", "one file for each split", "named after the dataset",
    "image and label", "image and fine_label", "images as plain bytes",
    "label of the coarse classes beside fine_label", "a link for the folder", "a link for the inner folder",
    "links that go round in circles", "the hub's cache", "a clone with its owner's folder", "capital letters",
    "a Mac's shadow files", "beside an incomplete set", "BANLIB_DATA names the inner folder",
    "BANLIB_DATA names the folder of the files", "CIFAR-10 beside it",
])  # fmt: skip
def test_parquet_files_are_found_as_people_have_them(place, tiny, monkeypatch, layout):
    parquet_layout(place, tiny, layout, monkeypatch)
    loaded = load()
    assert loaded.digest == datasets.facts("cifar100").digest and datasets.locate("cifar100")[0] == "parquet"


@pytest.mark.parametrize("layout", ["cifar-100-python", "cifar100", "cifar100/archive", "archive", ".", "inner"])
def test_the_three_files_are_found_where_torchvision_kaggle_and_people_put_them(place, tiny, monkeypatch, layout):
    base = write_torchvision(place.home.parent / "elsewhere", tiny, monkeypatch)
    target = place.data / ("cifar-100-python" if layout == "inner" else layout)
    target.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        file.rename(target / file.name)
    if layout == "inner":
        monkeypatch.setenv("BANLIB_DATA", str(target))
    assert load().digest == datasets.facts("cifar100").digest
    assert datasets.locate("cifar100") == ("torchvision", target)


@pytest.mark.parametrize(
    "file",
    [ARCHIVE, f"cifar100/{ARCHIVE}", f"cifar-100-python/{ARCHIVE}", "cifar-100-python (1).tar.gz", f"{ARCHIVE}.1"],
)
def test_an_archive_that_was_not_unpacked_is_read_and_left_as_it_is(place, server, file):
    (place.data / file).parent.mkdir(exist_ok=True)
    archive = shutil.copy(server.archive, place.data / file)
    server.broken = "closes"
    assert load().digest == datasets.facts("cifar100").digest
    files = [path for path in place.data.rglob("*") if path.is_file()]
    assert [str(path) for path in files] == [str(archive)]


def test_half_an_archive_is_refused_with_its_checksum(place, server):
    half = server.archive.read_bytes()[:1000]
    (place.data / ARCHIVE).write_bytes(half)
    refused(f"{place.data / ARCHIVE} (1,000 bytes) has MD5 {hashlib.md5(half).hexdigest()}", "put that right or move")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 18134217\n"


@pytest.mark.parametrize("layout", ["parquet", "torchvision", "archive"])
def test_a_pointer_of_git_lfs_is_told_as_such(place, server, tiny, monkeypatch, layout):
    if layout == "parquet":
        write_parquet(place.data / "cifar100", tiny)
        file = place.data / "cifar100" / "test-00000-of-00001.parquet"
    elif layout == "torchvision":
        file = write_torchvision(place.data, tiny, monkeypatch) / "test"
    else:
        file = place.data / ARCHIVE
    file.write_text(POINTER)
    refused(f"{file} is a git-lfs pointer: run `git lfs pull` in {file.parent}")


def test_a_web_page_or_a_dangling_link_in_a_files_place_is_told_as_such(place, tiny):
    write_parquet(place.data / "cifar100", tiny)
    shard = place.data / "cifar100" / "test-00000-of-00001.parquet"
    shard.write_text("<!DOCTYPE html>\n<html><title>Sign in</title></html>")
    refused(f"{shard} is a web page")
    shard.unlink()
    shard.symlink_to("../../blobs/missing")
    refused(f"{shard} cannot be read", "No such file")


def test_coarse_labels_are_no_fine_ones(place, tiny):
    write_tables(place.data / "cifar100", {s: (images, labels // 2) for s, (images, labels) in tiny.items()}, label="label")
    refused("have labels 0 to 1", "expected 0 to 3")


def test_whole_files_are_used_beside_incomplete_ones(place, tiny, monkeypatch):
    write_parquet(place.data / "cifar100", {"train": tiny["train"]})
    base = write_torchvision(place.data, tiny, monkeypatch)
    assert load().digest == datasets.facts("cifar100").digest and datasets.locate("cifar100") == ("torchvision", base)


def test_the_other_dataset_is_not_taken_for_this_one(place, tiny, monkeypatch):
    write_parquet(place.data / "cifar100", tiny)
    sentence = refused("cifar10 is not in", error=FileNotFoundError, name="cifar10")
    assert "damaged" not in sentence and datasets.locate("cifar10") is None
    monkeypatch.setenv("BANLIB_DATA", str(place.data / "cifar100"))
    refused("cifar10 is not in", error=FileNotFoundError, name="cifar10")


# Broken files


def test_a_missing_shard_is_named(place, tiny):
    write_parquet(place.data / "cifar100", tiny, shards=3)
    (place.data / "cifar100" / "train-00001-of-00003.parquet").unlink()
    refused("lacks train-00001-of-00003.parquet")


def test_a_missing_split_is_named(place, tiny):
    write_parquet(place.data / "cifar100", {"train": tiny["train"]})
    refused("lacks test*.parquet")


def test_a_second_copy_does_no_harm(place, tiny):
    write_parquet(place.data / "cifar100", tiny)
    write_parquet(place.data / "cifar100" / "again", tiny)
    assert load().train.labels.shape == (40,)


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_truncated_shard_is_named_with_its_size(place, tiny, kept):
    write_parquet(place.data / "cifar100", tiny)
    shard = place.data / "cifar100" / "test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:kept])
    refused(shard, f"{shard.stat().st_size:,} bytes")


def test_another_table_is_refused_with_what_was_looked_for(place, tiny):
    write_parquet(place.data / "cifar100", tiny, label="answer")
    refused("has no readable columns of images and labels", "fine_label or label")


def test_flipped_bytes_in_a_shard_never_load(place, tiny):
    """100 single-byte changes all over one file: refused, or (in bytes nobody reads) the right content."""
    write_parquet(place.data / "cifar100", tiny)
    good = load()
    shard = place.data / "cifar100" / "test-00000-of-00001.parquet"
    whole, generator = shard.read_bytes(), numpy.random.default_rng(1)
    refusals = 0
    for position in generator.integers(0, len(whole), 100):
        changed = bytearray(whole)
        changed[position] ^= 1 << generator.integers(8)
        shard.write_bytes(changed)
        shutil.rmtree(place.home)
        try:
            assert same(load(), good)
        except DatasetError:
            refusals += 1
    assert refusals > 50  # the others hit what nobody reads: statistics, checksums, other columns


@pytest.mark.parametrize(
    "cell, word",
    [
        (b"no image", "row 3 is no readable image"),
        (encoded(numpy.zeros((32, 32, 3), "uint8"))[:60], "row 3 is no readable image"),
        (encoded(numpy.zeros((16, 32, 3), "uint8")), "row 3 is a 32x16 RGB image, expected 32x32 RGB"),
        (encoded(numpy.zeros((32, 32), "uint8")), "row 3 is a 32x32 L image, expected 32x32 RGB"),
        (encoded(numpy.zeros((32, 32, 3), "uint8"), "BMP"), "row 3 is no readable image"),
        (None, "cells are empty"),
    ],
)
def test_a_bad_image_is_named(place, tiny, cell, word):
    write_parquet(place.data / "cifar100", tiny)
    shard = place.data / "cifar100" / "test-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(shard)
    cells = table.column("img").to_pylist()
    cells[3] = {"bytes": cell, "path": None}
    pyarrow.parquet.write_table(table.set_column(0, "img", pyarrow.array(cells)), shard)
    refused(shard, word)


def altered(tiny, split, change):
    content = {split: (images.copy(), labels.copy()) for split, (images, labels) in tiny.items()}
    change(*content[split])
    return content


def one_pixel(images, labels):
    images[7, 1, 2, 0] ^= 1


def two_labels_swapped(images, labels):
    labels[0], labels[1] = labels[1], labels[0]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("change", [one_pixel, two_labels_swapped])
def test_one_altered_pixel_or_label_is_refused_with_both_digests(place, tiny, split, change):
    content = altered(tiny, split, change)
    write_parquet(place.data / "cifar100", content)
    found, wanted = reference_digest(*content[split]), reference_digest(*tiny[split])
    refused(f"the {split} images of cifar100 in {place.data / 'cifar100'}", f"{found}, expected {wanted}")


def test_a_label_out_of_range_is_refused(place, tiny):
    def change(images, labels):
        labels[0] = 4

    write_parquet(place.data / "cifar100", altered(tiny, "test", change))
    refused("have labels 0 to 4", "expected 0 to 3")


def test_another_number_of_images_is_refused(place, tiny):
    images, labels = tiny["train"]
    write_parquet(place.data / "cifar100", tiny | {"train": (images[:-4], labels[:-4])})
    refused("holds 36 train images, expected 40")


def test_cifar10_without_a_known_digest_is_checked_by_counts_and_statistics(place, tiny):
    def darker(images, labels):
        images[0] //= 2

    def relabelled(images, labels):
        labels[0] = 1

    write_parquet(place.data / "cifar10", altered(tiny, "train", darker), label="label")
    refused("channel means and deviations", name="cifar10")
    shutil.rmtree(place.data / "cifar10")
    write_parquet(place.data / "cifar10", altered(tiny, "test", relabelled), label="label")
    refused("4 to 6 of each; expected 0 to 3, 5 of each", name="cifar10")


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_torchvision_files_are_refused_before_anything_is_unpickled(place, tiny, monkeypatch, file):
    base = write_torchvision(place.data, tiny, monkeypatch)
    wanted = hashlib.md5((base / file).read_bytes()).hexdigest()
    (base / file).write_bytes(pickle.dumps({"data": None, "fine_labels": [1]}))
    found = hashlib.md5((base / file).read_bytes()).hexdigest()
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("a pickle was loaded"))
    refused(base / file, wanted, found)
    (base / file).unlink()
    refused(f"{base / file} is missing")


# The download


def left(place):
    """What lies in the data folder, without the lock that a dot hides."""
    return sorted(path.name for path in place.data.iterdir() if path.name != ".cifar100.lock")


def test_the_download_is_checked_and_put_into_place(place, server):
    loaded = load()
    assert loaded.train.images.shape == (40, 3, 32, 32)
    assert left(place) == [ARCHIVE] and datasets.locate("cifar100") == ("archive", place.data / ARCHIVE)
    shutil.rmtree(place.home)
    server.broken = "closes"
    assert same(load(), loaded)  # read from where it was put
    assert left(place) == [ARCHIVE] and {path.name for path in (place.home / "decoded").iterdir()} <= {
        "cifar100.safetensors", "cifar100.lock"}  # fmt: skip


def test_without_a_network_one_sentence_says_what_to_do(place):
    sentence = refused(
        torchvision.datasets.CIFAR100.url,
        "Connection refused",
        "uoft-cs/cifar100",
        place.data / "cifar100",
        error=FileNotFoundError,
    )
    assert sentence.startswith(f"cifar100 is not in {place.data} and its download from")
    assert left(place) == []
    (place.data / "archive.zip").touch()
    assert "(which holds archive.zip)" in refused(place.data, error=FileNotFoundError)


def test_a_download_that_breaks_half_way_is_refused_and_leaves_nothing(place, server):
    server.broken = "closes"
    half, size = server.archive.read_bytes(), server.archive.stat().st_size // 2
    sums = hashlib.md5(half[:size]).hexdigest(), hashlib.md5(half).hexdigest()
    refused("its download", "failed", server.archive.name, f"{size:,} bytes", *sums, error=FileNotFoundError)
    assert left(place) == []
    server.broken = None
    assert load().train.labels.shape == (40,)


def test_an_altered_archive_is_refused_with_both_checksums_and_leaves_nothing(place, server):
    whole = server.archive.read_bytes()
    changed = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    server.archive.write_bytes(changed)
    words = f"({len(whole):,} bytes) has MD5 {hashlib.md5(changed).hexdigest()}", hashlib.md5(whole).hexdigest()
    refused(*words, error=FileNotFoundError)
    assert left(place) == []


def test_an_archive_with_another_file_in_it_is_refused_before_anything_is_unpickled(place, server, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "test_list", [["test", "0" * 32]])
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("a pickle was loaded"))
    refused("has MD5", "expected " + "0" * 32)
    assert not (place.home / "decoded" / "cifar100.unpacked").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_while_downloading_leaves_nothing(place, server, monkeypatch, error):
    def stopped(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", stopped)
        if isinstance(error, OSError):
            refused(f"cannot write to {place.data}: No space left", "needs 170", "free there", error=FileNotFoundError)
        else:
            with pytest.raises(KeyboardInterrupt):
                load()
    assert left(place) == []
    assert load().train.labels.shape == (40,)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_while_unpacking_leaves_the_archive_alone(place, server, monkeypatch, error):
    shutil.copy(server.archive, place.data)

    def stopped(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", stopped)
        with pytest.raises(type(error)) as caught:
            load()
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"cannot write to {place.home / 'decoded'}: No space left")
    assert left(place) == [ARCHIVE] and not (place.home / "decoded" / "cifar100.unpacked").exists()
    assert load().train.labels.shape == (40,)


def test_what_a_kill_while_unpacking_left_is_swept_up(place, server):
    shutil.copy(server.archive, place.data)
    half = place.home / "decoded" / "cifar100.unpacked" / "cifar-100-python"
    half.mkdir(parents=True)
    (half / "half a file").touch()
    assert load().train.labels.shape == (40,) and not half.parent.exists()


def test_a_download_killed_half_way_is_never_trusted_and_is_swept_up_by_the_next(place, server):
    server.broken = "stalls"
    code = f"""
import torchvision
from banlib.runs import datasets
torchvision.datasets.CIFAR100.url = {torchvision.datasets.CIFAR100.url!r}
datasets.load("cifar100")
"""
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    half = place.data / f"{ARCHIVE}.part"
    deadline = time.monotonic() + 60
    try:
        while not (half.exists() and half.stat().st_size):
            assert child.poll() is None and time.monotonic() < deadline, "the download did not start"
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    assert left(place) == [half.name]
    server.broken = None
    assert load().train.labels.shape == (40,)
    assert left(place) == [ARCHIVE]


def slow_and_counted(monkeypatch, function):
    """Replace `cifar.function` by one that takes 0.3 s longer; the list of its calls."""
    really, calls = getattr(cifar, function), []

    def slow(*args):
        calls.append(args)
        time.sleep(0.3)
        return really(*args)

    monkeypatch.setattr(cifar, function, slow)
    return calls


def test_two_that_need_the_download_at_once_fetch_it_once(place, server, tmp_path, monkeypatch):
    really, calls = shutil.copyfileobj, []

    def slow(reply, file, *size):
        calls.append(file)
        time.sleep(0.3)
        return really(reply, file, *size)

    homes = [tmp_path / "one", tmp_path / "another"]  # as two machines of a cluster that share the data folder
    with monkeypatch.context() as patch, concurrent.futures.ThreadPoolExecutor() as pool:
        patch.setattr(cifar.shutil, "copyfileobj", slow)
        found = list(pool.map(lambda home: cifar.read("cifar100", home, place.data), homes))
    assert len([file for file in calls if file.name.endswith(".part")]) == 1
    assert torch.equal(found[0]["test"][0], found[1]["test"][0])
    assert left(place) == [ARCHIVE]


def test_a_link_in_place_of_the_part_is_removed_but_not_followed(place, server, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (place.data / f"{ARCHIVE}.part").symlink_to(mine)
    load()
    assert mine.read_text() == "precious" and left(place) == [ARCHIVE]


# Decoded tensors


@pytest.fixture
def kept(place, tiny):
    """The decoded file of a first load."""
    write_parquet(place.data / "cifar100", tiny)
    load()
    return place.home / "decoded" / "cifar100.safetensors"


def test_the_second_load_reads_the_decoded_tensors_only(place, kept):
    first = load()
    shutil.rmtree(place.data / "cifar100")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load(), first)
    assert kept.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_two_that_need_the_decoded_tensors_at_once_decode_them_once(place, tiny, monkeypatch):
    write_parquet(place.data / "cifar100", tiny)
    calls = slow_and_counted(monkeypatch, "read_files")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: cifar.read("cifar100", place.home, place.data), range(2)))
    assert len(calls) == 1
    assert torch.equal(found[0]["train"][0], found[1]["train"][0])


def test_decoded_tensors_with_any_flipped_bit_are_made_again(kept):
    first, whole, generator = load(), kept.read_bytes(), numpy.random.default_rng(2)
    positions = [*range(8, 200, 12), *generator.integers(0, len(whole), 30)]  # header and tensors
    for position in positions:
        changed = bytearray(whole)
        changed[position] ^= 1 << generator.integers(8)
        kept.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert same(load(), first)
        assert kept.read_bytes() == whole or not caught  # made again with a warning; or a bit that says nothing


def test_a_flipped_pixel_bit_is_noticed_for_cifar10_too(place, tiny):
    write_parquet(place.data / "cifar10", tiny, label="label")
    first = load("cifar10")
    kept = place.home / "decoded" / "cifar10.safetensors"
    changed = bytearray(kept.read_bytes())
    changed[-1000] ^= 1
    kept.write_bytes(changed)
    with pytest.warns(UserWarning, match="is damaged and will be made again"):
        assert same(load("cifar10"), first)


@pytest.mark.filterwarnings("ignore:decoded images cannot be kept")  # a folder stands in the way
@pytest.mark.parametrize("damage", ["truncated", "empty", "huge header", "other tensors", "other types", "a folder"])
def test_damaged_decoded_tensors_are_made_again_with_a_warning(place, kept, damage):
    first, whole = load(), kept.read_bytes()
    with safetensors.safe_open(kept, "pt") as file:
        metadata = file.metadata()
    right = safetensors.torch.load(whole)
    kept.unlink()
    if damage == "a folder":
        kept.mkdir()
    else:
        kept.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "empty": b"",
                "huge header": b"\xff" * 7 + b"\x7f" + whole[8:],
                "other tensors": safetensors.torch.save({"a": right["train.images"]}, metadata),
                "other types": safetensors.torch.save(right | {"test.images": right["test.images"] / 2}, metadata),
            }[damage]
        )
    with pytest.warns(UserWarning, match="is damaged and will be made again from the source"):
        assert same(load(), first)
    if damage != "a folder":
        assert kept.read_bytes() == whole


def test_damaged_decoded_tensors_without_a_source_are_the_same_sentence(place, kept):
    shutil.rmtree(place.data / "cifar100")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="is damaged"):
        refused(f"cifar100 is not in {place.data}", error=FileNotFoundError)


def test_a_save_killed_half_way_is_overwritten(place, kept):
    first = load()
    kept.unlink()
    (kept.parent / ".cifar100.safetensors.tmp").write_bytes(b"half")
    assert same(load(), first)
    assert {path.name for path in kept.parent.iterdir()} <= {"cifar100.safetensors", "cifar100.lock"}


def test_a_full_disk_keeps_nothing_decoded_and_says_so(place, kept, monkeypatch):
    first = load()
    kept.unlink()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="cannot be kept in .*No space left on device"):
        assert same(load(), first)
    assert {path.name for path in kept.parent.iterdir()} <= {"cifar100.lock"}


def test_a_home_that_cannot_be_written_still_loads(place, tiny, monkeypatch):
    write_parquet(place.data / "cifar100", tiny)
    place.home.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert load().train.labels.shape == (40,)


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock is not supported")])
def test_a_disk_without_locks_still_loads_and_keeps(place, server, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(cifar.filelock.FileLock, "acquire", refuse)
    first = load()
    assert first.digest == datasets.facts("cifar100").digest and left(place) == [ARCHIVE]
    assert (place.home / "decoded" / "cifar100.safetensors").exists() and same(load(), first)


# The real one


@pytest.mark.skipif(not (REAL / "cifar100").is_dir(), reason="no ../shared/data/cifar100 beside the checkout")
@pytest.mark.timeout(300)
def test_the_real_cifar100_has_the_published_statistics_and_the_known_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("BANLIB_DATA", str(REAL))
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path))
    loaded = load()
    assert loaded.train.images.shape == (50_000, 3, 32, 32) and loaded.test.images.shape == (10_000, 3, 32, 32)
    assert loaded.digest == datasets.facts("cifar100").digest
    # Krizhevsky's images, as their published channel means and deviations say.
    mean, std = content.channel_statistics(loaded.train.images)
    assert [round(value, 8) for value in mean.tolist()] == [0.50707516, 0.48654887, 0.44091784]
    assert [round(value, 8) for value in std.tolist()] == [0.26733429, 0.25643846, 0.27615047]
    schema = pyarrow.parquet.read_schema(REAL / "cifar100" / "test-00000-of-00001.parquet").metadata[b"huggingface"]
    assert list(loaded.classes) == json.loads(schema)["info"]["features"]["fine_label"]["names"]
    assert loaded.train.labels.bincount().tolist() == [500] * 100
    dev = datasets.load("cifar100-dev")
    facts = datasets.facts("cifar100-dev")
    assert (dev.digest, len(dev.train.labels), len(dev.test.labels)) == (facts.digest, 45_000, 5_000)
    assert facts.images == 45_000 and dev.test.labels.bincount().tolist() == [50] * 100
    lines = [hashlib.sha256(image.numpy()).hexdigest() for image in loaded.train.images.permute(0, 2, 3, 1).contiguous()]
    parts = [
        [hashlib.sha256(image.numpy()).hexdigest() for image in split.images.permute(0, 2, 3, 1).contiguous()]
        for split in (dev.train, dev.test)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(lines) and not set(parts[0]) & set(parts[1])
