"""What the teacher says about a batch: computed online, or remembered per (image, view).

A teacher is a frozen network in eval mode. It is called with the student's own augmented batch, so both always see
the same pixels: `teacher(batch, indices, views) -> logits`. A remembered answer is the online one up to the order of
sums and, in a float16 table, to a rounding that was measured (`HALF`): how a student learns, not what. So the choice is
no part of the run id; it is recorded with the run, as the device and the precision are.
"""

import os
import warnings
from pathlib import Path

import torch

MEMORIES = ("auto", "online", "remembered")
SMALL = 64 * 2**20  # bytes; a float32 table of this size is filled at once before training: digits, not CIFAR
ASKED_AT_ONCE = 64  # images in each batch by which a table is filled on a CPU
HALF = 1e-3  # largest change of a probability for which answers are kept as float16, else float32
SAFE = 0.9  # of the memory that is free, the share that table and training may take: the rest is for the allocator's gaps
WORTH = 0.75  # remember by "auto" where at most this share of the online teacher's forward passes is left to do

_kept = {}  # one {key: Remembered}: the next student of the same teacher, in the same process, finds it filled


def choose(
    network, autocast, images, count, classes, epochs, memory="auto", layout=torch.contiguous_format, key=None,
    reserve=0,
):  # fmt: skip
    """The teacher that a training asks: `online`, or a `Remembered`.

    images: the training images (`data.Augmented`); count: how many; layout: memory format of the batches.
    memory: one of MEMORIES. "auto" remembers where that saves forward passes: a small table if there are at least as
    many epochs as views; a large one if `share` leaves at most WORTH, or if it is there from an earlier student.
    key: of the table that students of one teacher share in this process, or None; `forget()` frees it.
    reserve: bytes that training takes beside it. Where free memory does not hold both, the teacher is online, and a
    warning says so.
    """
    answers = count * images.count
    if answers * classes * 4 <= SMALL:
        wanted = memory == "remembered" or (memory == "auto" and images.count <= epochs)
        return remembered(network, autocast, images, count, classes) if wanted else online(network, autocast)
    if key is not None and key in _kept and memory != "online":
        return _kept[key]
    if memory == "online" or (memory == "auto" and share(epochs, images.count) > WORTH):
        return online(network, autocast)
    forget()
    dtype = table_type(network, autocast, images, count, layout)
    needed, free = answers * (classes * dtype.itemsize + 1), free_memory(images.device)
    if needed + reserve > SAFE * free:
        warnings.warn(f"the teacher is asked online: remembering its answers takes {needed / 1e9:.1f} GB beside the "
                      f"{reserve / 1e9:.1f} GB of training, and {free / 1e9:.1f} GB are free on {images.device}")  # fmt: skip
        return online(network, autocast)
    teacher = Remembered(network, autocast, images, count, classes, dtype, layout)
    if key is not None:
        _kept[key] = teacher
    return teacher


def frozen(network):
    """The network in eval mode, without gradients: its BatchNorm buffers do not move, its weights get no gradient."""
    return network.eval().requires_grad_(False)


def online(network, autocast):
    """A teacher that runs its network on every batch. autocast: a context manager factory."""
    network = frozen(network)

    def teacher(batch, indices, views):
        with torch.no_grad(), autocast():
            return network(batch)

    return teacher


class Remembered:
    """A teacher that answers each (image, view) once: `fill` asks it, calls look up.

    The table is [count, views, classes] of dtype on the images' device; 50,000 x 162 x 100 float16 are 1.6 GB, touched
    as they are filled. On a CPU an answer has the same bits whatever is asked beside it: a resumed run, whose table
    starts empty, sees those of one that never stopped.
    """

    def __init__(self, network, autocast, images, count, classes, dtype=torch.float32, layout=torch.contiguous_format):
        self.ask, self.images, self.layout = online(network, autocast), images, layout
        self.table = torch.empty(count, images.count, classes, dtype=dtype, device=images.device)
        self.known = torch.zeros(count, images.count, dtype=torch.bool, device=images.device)

    def fill(self, indices, views):
        """Ask about those (indices[i], views[i]) that are not known yet; no pair may be in there twice. int64 [n]."""
        missing = ~self.known[indices, views]
        if missing.any():
            indices, views = indices[missing], views[missing]
            for part in seats(indices):
                said, seated = self.say(indices[part], views[part]), part >= 0
                part = part[seated]
                self.table[indices[part], views[part]] = said[seated].to(self.table.dtype)
            self.known[indices, views] = True

    def say(self, indices, views):
        """The network's answer, now: float32 [n, classes]."""
        batch = self.images.batch(indices, views).contiguous(memory_format=self.layout)
        return self.ask(batch, indices, views).float()

    def __call__(self, batch, indices, views):
        return self.table[indices, views].float()


def kind(teacher):
    """How a teacher answers, in words that are recorded with a run: "online", "remembered in float16"."""
    return f"remembered in {str(teacher.table.dtype).split('.')[1]}" if isinstance(teacher, Remembered) else "online"


def remembered(network, autocast, images, count, classes):
    """A `Remembered` that has already answered every (image, view), in float32 and one fixed order."""
    teacher = Remembered(network, autocast, images, count, classes)
    for view in range(images.count):
        for indices in torch.arange(count, device=images.device).split(512):
            same = torch.full_like(indices, view)
            teacher.table[indices, view] = teacher.say(indices, same)
    teacher.known[:] = True
    return teacher


def seats(indices):
    """Which of the pairs to ask about together: rows of int64 [ASKED_AT_ONCE], each of 0..n-1 once, -1 for nobody.

    A matrix product's last bits can depend on the row (those of MKL for ten classes do), but not on the other rows. So
    on a CPU every batch has one size and image i sits in row i % ASKED_AT_ONCE of it; an empty seat
    (-1 indexes the last pair) is asked too and not heard. That wastes about a tenth; CUDA, which promises no bits, has none.
    """
    n = len(indices)
    if indices.is_cuda:
        return torch.arange(n, device=indices.device).split(8 * ASKED_AT_ONCE)
    row = indices % ASKED_AT_ONCE
    taken = row.bincount(minlength=ASKED_AT_ONCE)
    by_row = row.argsort(stable=True)
    batch = torch.arange(n) - (taken.cumsum(0) - taken)[row[by_row]]  # the k-th image of a row goes into batch k
    plan = torch.full((int(taken.max()), ASKED_AT_ONCE), -1)
    plan[batch, row[by_row]] = by_row
    return plan


def share(epochs, views):
    """The share of an online teacher's forward passes that filling a table takes, over so many epochs in all.

    Each epoch draws one of `views` views of each image; a pair is asked about when it is first drawn.
    """
    return views * (1 - (1 - 1 / views) ** epochs) / epochs


def table_type(network, autocast, images, count, layout):
    """float16 if rounding to it moves no probability of a first batch of answers by more than HALF, else float32."""
    indices = torch.arange(256, device=images.device) % count
    probe = Remembered(network, autocast, images, 0, 0, layout=layout)
    said = probe.say(indices, torch.full_like(indices, images.views.identity))
    moved = (said.softmax(1) - said.half().float().softmax(1)).abs().max()
    return torch.float16 if moved <= HALF else torch.float32  # an overflow is NaN, which compares false


def forget():
    """Free the table that is kept for the next student."""
    _kept.clear()


def free_memory(device):
    """Bytes that can still be had on the device; for the CPU what the system, or the container around it, has left."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for whoever asks next
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(table["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        try:  # not Linux: half of what is built in
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, ValueError, OSError):
            return 0
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return max(0, min(free, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
