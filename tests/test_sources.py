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
from dataclasses import replace
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from banlib import data, sources

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
COUNTS = {"train": 40, "test": 20}
CLASSES = ("apple", "bear", "cat", "dog")


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
    lines = [f"{hashlib.sha256(image.tobytes()).hexdigest()} {label}\n" for image, label in zip(images, labels)]
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
        expected = replace(
            sources.EXPECTED[name],
            classes=CLASSES,
            counts=COUNTS,
            mean=tuple(scaled.mean((0, 1, 2))),
            std=tuple(scaled.std((0, 1, 2))),
            digests=digests,
        )
        monkeypatch.setitem(sources.EXPECTED, name, expected)
        monkeypatch.setattr(getattr(torchvision.datasets, expected.torchvision), "url", f"http://127.0.0.1:1/{name}")
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
    """`data.load`, as a fresh process would."""
    data._load.cache_clear()
    return data.load(name)


def refused(*words, error=sources.DatasetError, name="cifar100"):
    """That loading fails with one sentence that holds `words`, keeping nothing decoded; the sentence."""
    with pytest.raises(error) as caught:
        load(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 1500
    for word in [*words, str(sources.data_folder()), f"banlib data {name}"]:
        assert str(word) in sentence
    assert not (sources.home() / "decoded" / f"{name}.safetensors").exists()
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
    assert sources.locate("cifar100") == ("parquet", place.data / "cifar100")
    shutil.rmtree(place.home)
    shutil.rmtree(place.data / "cifar100")
    write_parquet(place.data / "cifar100", shuffled, kind="WebP", shards=3)
    webp = load()
    shutil.rmtree(place.home)
    shutil.rmtree(place.data / "cifar100")
    base = write_torchvision(place.data, shuffled, monkeypatch)
    pickled = load()
    assert sources.locate("cifar100") == ("torchvision", base)
    decoded = load()  # the fourth source: what the third load kept
    assert same(png, webp) and same(png, pickled) and same(png, decoded)
    assert png.digest == webp.digest == pickled.digest == decoded.digest
    assert png.classes == pickled.classes == CLASSES


def test_rows_stand_in_the_order_of_their_digests_with_their_labels_and_channels(place, tiny):
    write_parquet(place.data / "cifar100", tiny)
    cifar = load()
    for split, (images, labels) in tiny.items():
        order = sorted(range(len(labels)), key=lambda row: hashlib.sha256(images[row].tobytes()).hexdigest())
        found = getattr(cifar, split)
        assert numpy.array_equal(found.images.permute(0, 2, 3, 1).numpy(), images[order])
        assert found.labels.tolist() == labels[order].tolist()
    assert (cifar.channels, cifar.image_size) == (3, 32)
    numpy.testing.assert_allclose(cifar.mean, (tiny["train"][0] / 255).mean((0, 1, 2)), atol=1e-7)
    numpy.testing.assert_allclose(cifar.std, (tiny["train"][0] / 255).std((0, 1, 2)), atol=1e-7)


def test_the_content_digest_is_the_described_one_and_ignores_row_order(tiny):
    images, labels = tiny["test"]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    wanted = reference_digest(images, labels)
    assert data.content_digest(tensor, torch.from_numpy(labels)) == wanted
    assert data.content_digest(tensor.flip(0), torch.from_numpy(labels).flip(0)) == wanted
    assert data.content_digest(tensor.flip(1), torch.from_numpy(labels)) != wanted


def test_cifar10_reads_the_hub_layout_with_its_own_label_column(place, tiny):
    write_parquet(place.data / "cifar10", tiny, label="label")
    assert load("cifar10").train.images.shape == (40, 3, 32, 32)


def test_folders_come_from_the_environment_then_the_platform(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BANLIB_HOME", "here")
    monkeypatch.delenv("BANLIB_DATA", raising=False)
    assert data.home() == tmp_path / "here" and data.data_folder() == tmp_path / "here" / "data"
    monkeypatch.setenv("BANLIB_DATA", str(tmp_path / "there"))
    assert data.data_folder() == tmp_path / "there"
    monkeypatch.setenv("BANLIB_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.home().is_absolute() and data.home() != tmp_path and "banlib" in data.home().parts


# Broken files


def test_a_missing_shard_is_named(place, tiny):
    write_parquet(place.data / "cifar100", tiny, shards=3)
    (place.data / "cifar100" / "train-00001-of-00003.parquet").unlink()
    refused("lacks train-00001-of-00003.parquet")


def test_a_missing_split_is_named(place, tiny):
    write_parquet(place.data / "cifar100", {"train": tiny["train"]})
    refused("lacks test-*.parquet")


def test_a_shard_that_is_there_twice_is_named(place, tiny):
    write_parquet(place.data / "cifar100", tiny)
    write_parquet(place.data / "cifar100" / "again", tiny)
    refused("train-00000-of-00002.parquet is there twice")


@pytest.mark.parametrize("kept", [0, 3, 1000, -1])
def test_a_truncated_shard_is_named_with_its_size(place, tiny, kept):
    write_parquet(place.data / "cifar100", tiny)
    shard = place.data / "cifar100" / "test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:kept])
    refused(shard, f"{shard.stat().st_size:,} bytes")


def test_another_table_is_refused(place, tiny):
    write_parquet(place.data / "cifar100", tiny, label="label")
    refused("has no readable columns img.bytes and fine_label")


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
        except sources.DatasetError:
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
    refused("have labels 0 to 4, expected 0 to 3")


def test_another_number_of_images_is_refused(place, tiny):
    images, labels = tiny["train"]
    write_parquet(place.data / "cifar100", tiny | {"train": (images[:-4], labels[:-4])})
    refused("holds 36 train images of cifar100, expected 40")


def test_cifar10_without_a_known_digest_is_checked_by_counts_and_statistics(place, tiny):
    def darker(images, labels):
        images[0] //= 2

    def relabelled(images, labels):
        labels[0] = 1

    write_parquet(place.data / "cifar10", altered(tiny, "train", darker), label="label")
    refused("channel means and deviations", name="cifar10")
    shutil.rmtree(place.data / "cifar10")
    write_parquet(place.data / "cifar10", altered(tiny, "test", relabelled), label="label")
    refused("4 to 6 per class, expected 5", name="cifar10")


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


def test_the_download_is_checked_and_put_into_place(place, server, monkeypatch):
    cifar = load()
    assert cifar.train.images.shape == (40, 3, 32, 32)
    assert [path.name for path in place.data.iterdir()] == ["cifar-100-python"]
    shutil.rmtree(place.home)
    server.broken = "closes"
    assert same(load(), cifar)  # read from where it was put


def test_without_a_network_one_sentence_says_what_to_do(place):
    sentence = refused(
        torchvision.datasets.CIFAR100.url,
        "Connection refused",
        "uoft-cs/cifar100",
        place.data / "cifar100",
        place.data / "cifar-100-python",
        error=FileNotFoundError,
    )
    assert sentence.startswith(f"cifar100 is not in {place.data} and its download from")
    assert list(place.data.iterdir()) == []


def test_a_download_that_breaks_half_way_is_refused_and_leaves_nothing(place, server):
    server.broken = "closes"
    refused("its download", "failed", server.archive.name, error=FileNotFoundError)
    assert list(place.data.iterdir()) == []
    server.broken = None
    assert load().train.labels.shape == (40,)


def test_an_altered_archive_is_refused_with_both_checksums_and_leaves_nothing(place, server):
    whole = server.archive.read_bytes()
    changed = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
    server.archive.write_bytes(changed)
    words = f"got {len(whole):,} bytes, MD5 {hashlib.md5(changed).hexdigest()}", hashlib.md5(whole).hexdigest()
    refused(*words, error=FileNotFoundError)
    assert list(place.data.iterdir()) == []


def test_an_archive_with_another_file_in_it_is_refused_and_leaves_nothing(place, server, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "test_list", [["test", "0" * 32]])
    refused("its download", "failed", error=FileNotFoundError)
    assert list(place.data.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_while_unpacking_leaves_nothing(place, server, monkeypatch, error):
    def stopped(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", stopped)
        if isinstance(error, OSError):
            refused("No space left on device", error=FileNotFoundError)
        else:
            with pytest.raises(KeyboardInterrupt):
                load()
    assert list(place.data.iterdir()) == []
    assert load().train.labels.shape == (40,)


def test_a_download_killed_half_way_is_never_trusted_and_is_swept_up_by_the_next(place, server):
    server.broken = "stalls"
    code = f"""
import torchvision
from banlib import data
torchvision.datasets.CIFAR100.url = {torchvision.datasets.CIFAR100.url!r}
data.load("cifar100")
"""
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    half = place.data / "cifar100.part" / server.archive.name
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
    assert {path.name for path in place.data.iterdir()} == {"cifar100.part", "cifar100.lock"}
    (place.data / "cifar100.part" / "cifar-100-python").mkdir()
    (place.data / "cifar100.part" / "cifar-100-python" / "half a file").touch()  # as a kill while unpacking leaves it
    (place.data / "cifar100.parting").mkdir()  # somebody's own
    server.broken = None
    assert load().train.labels.shape == (40,)
    assert {path.name for path in (place.data / "cifar-100-python").iterdir()} == {"train", "test", "meta"}
    assert {path.name for path in place.data.iterdir()} == {"cifar-100-python", "cifar100.parting"}


def slow_and_counted(monkeypatch, function):
    """Replace `sources.function` by one that takes 0.3 s longer; the list of its calls."""
    really, calls = getattr(sources, function), []

    def slow(*args):
        calls.append(args)
        time.sleep(0.3)
        return really(*args)

    monkeypatch.setattr(sources, function, slow)
    return calls


def test_two_that_need_the_download_at_once_fetch_it_once(place, server, tmp_path, monkeypatch):
    calls = slow_and_counted(monkeypatch, "_fetch")
    homes = [tmp_path / "one", tmp_path / "another"]  # as two machines of a cluster that share the data folder
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda home: sources.read("cifar100", home, place.data), homes))
    assert len(calls) == 1
    assert torch.equal(found[0]["test"][0], found[1]["test"][0])
    assert [path.name for path in place.data.iterdir()] == ["cifar-100-python"]


def test_a_link_in_place_of_the_part_folder_is_removed_but_not_followed(place, server, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").touch()
    (place.data / "cifar100.part").symlink_to(mine)
    load()
    assert (mine / "precious").exists() and not (place.data / "cifar100.part").is_symlink()


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
    calls = slow_and_counted(monkeypatch, "_from_source")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: sources.read("cifar100", place.home, place.data), range(2)))
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


@pytest.mark.filterwarnings("ignore:the decoded images of cifar100 cannot be kept")  # a folder stands in the way
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
                "other types": safetensors.torch.save(right | {"test.labels": right["test.labels"].int()}, metadata),
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
    kept.rename(kept.with_suffix(".part"))
    kept.with_suffix(".part").write_bytes(b"half")
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


def test_digits_that_are_not_the_known_ones_are_refused(monkeypatch):
    monkeypatch.setattr(sources, "DIGITS_DIGEST", "0" * 64)
    data._load.cache_clear()
    with pytest.raises(sources.DatasetError, match="content digest [0-9a-f]{64}, expected 0{64}"):
        data.load("digits")


# The real one


@pytest.mark.skipif(not (REAL / "cifar100").is_dir(), reason="no ../shared/data/cifar100 beside the checkout")
@pytest.mark.timeout(300)
def test_the_real_cifar100_has_the_published_statistics_and_the_known_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("BANLIB_DATA", str(REAL))
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path))
    cifar = load()
    assert cifar.train.images.shape == (50_000, 3, 32, 32) and cifar.test.images.shape == (10_000, 3, 32, 32)
    assert data.content_digest(cifar.test.images, cifar.test.labels) == sources.EXPECTED["cifar100"].digests["test"]
    mean, std = sources.channel_statistics(cifar.train.images)
    published = sources.EXPECTED["cifar100"]
    assert [round(value, 8) for value in mean.tolist()] == list(published.mean)
    assert [round(value, 8) for value in std.tolist()] == list(published.std)
    schema = pyarrow.parquet.read_schema(REAL / "cifar100" / "test-00000-of-00001.parquet").metadata[b"huggingface"]
    assert list(cifar.classes) == json.loads(schema)["info"]["features"]["fine_label"]["names"]
    assert cifar.train.labels.bincount().tolist() == [500] * 100
