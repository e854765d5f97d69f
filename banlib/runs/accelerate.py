"""Time for memory, and what else may make training faster.

By itself: a teacher's answers are remembered where that pays; dense units compute again what they
would keep where memory is too small, the same bits in half of it for a third more arithmetic. By
name alone: NAMES, which no GPU has shown to be right and to win yet.
"""

import contextlib
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from banlib import teachers
from banlib.models import DenseUnit
from banlib.runs import machine

NAMES = ("compile", "cuda-graph", "pad-channels")
MEMORIES = ("auto", "online", "remembered")
SAFE = 0.9  # of free memory, the share that training may take: the rest is for gaps
SMALL = 64 * 2**20  # bytes; a float32 table of this size is filled at once: digits, not CIFAR
WORTH = 0.75  # remember where at most this share of the online teacher's passes is left to do

_kept = {}  # one {key: teachers.Remembered}: the next student of the same teacher finds it filled


def apply(names, student, images, batch, autocast):
    """The speed-ups of these names, in place, for a student on its device.

    images: `views.Augmented`, what it learns from; batch: how many at once.
    """
    if "pad-channels" in names:
        pad_channels(student)
    if "compile" in names:  # which captures graphs by itself
        mode = "reduce-overhead" if "cuda-graph" in names else None
        student.compile(dynamic=False, mode=mode)
    elif "cuda-graph" in names and images.device.type == "cuda" and len(images) >= batch:
        capture(student, images, batch, autocast)


def capture(student, images, batch, autocast):
    """Replay passes of full batches as CUDA graphs, without the processor's time for each kernel.

    Capturing takes real passes; what they moved is put back, and the random generators too. The
    last batch of an epoch, which is smaller, is computed as ever.
    """
    first = torch.arange(batch, device=images.device)
    sample = images.batch(first, torch.zeros_like(first))
    before = [(tensor, tensor.clone()) for tensor in student.buffers()]
    eager = student.forward
    with machine.seeded(0, images.device), autocast():
        torch.cuda.make_graphed_callables(student.train(), (sample,))
    captured = student.forward
    student.forward = lambda batch: (captured if len(batch) == len(sample) else eager)(batch)
    for tensor, value in before:
        tensor.copy_(value)


class PaddedConv2d(nn.Conv2d):
    """A convolution with channels padded by zeros to multiples of eight, as matrix units want them.

    The same function of the same weights but for the order of sums.
    """

    def forward(self, x):
        wide, out = -self.in_channels % 8, -self.out_channels % 8
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, wide, 0, out))
        x = F.conv2d(F.pad(x, (0, 0, 0, 0, 0, wide)), weight, None, self.stride, self.padding)
        return x[:, : self.out_channels]


def pad_channels(network):
    """A `PaddedConv2d` of each convolution but the stem that has something to pad, in place.

    Growth 33 has nothing else. Compiled, padding is part of the kernels around it.
    """
    for layer in network.modules():
        odd = isinstance(layer, nn.Conv2d) and (layer.in_channels % 8 or layer.out_channels % 8)
        if odd and layer.in_channels > 3:
            layer.__class__ = PaddedConv2d
    return network


class RecomputingUnit(DenseUnit):
    """A dense unit that keeps nothing for the backward pass, which computes it again."""

    def new(self, x):
        if not self.training:
            return super().new(x)
        return checkpoint(
            super().new,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (contextlib.nullcontext(), self.statistics_kept()),
        )

    @contextlib.contextmanager
    def statistics_kept(self):
        """BatchNorm's running statistics have seen the batch already."""
        norms = (self.norm1, self.norm2)
        before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, values in zip(norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = values


def recompute(network):
    """A `RecomputingUnit` of each dense unit, in place; how many there are."""
    units = [module for module in network.modules() if isinstance(module, DenseUnit)]
    for unit in units:
        unit.__class__ = RecomputingUnit
    return len(units)


def fit_memory(student, shape, batch, precision, device):
    """(bytes that training takes, whether dense units recompute): only where memory is too small.

    Where even that does not fit, an earlier student's table of answers is freed.
    """
    needed = less = machine.step_memory(student, shape, batch, precision)
    free = machine.free_memory(device)
    units = recompute(student) if needed > SAFE * free else 0
    if units:
        less = machine.step_memory(student, shape, batch, precision)
        again = f"dense units compute again what they would keep, slower, in {less / 1e9:.1f} GB"
        room = f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device}"
        warnings.warn(f"training takes {room}: {again}", stacklevel=2)
    if less > SAFE * free:
        forget()
    return less, units > 0


def choose_teacher(network, autocast, images, classes, epochs, memory="auto", key=None, reserve=0):
    """The teacher that a student asks: `teachers.online`, or a `teachers.Remembered`.

    memory: one of MEMORIES. "auto" remembers where that saves forward passes: a small table if
    there are at least as many epochs as views; a large one if `teachers.share` leaves at most
    WORTH, or if it is there from an earlier student. key: of such a table; reserve: bytes that
    training takes beside it. Where free memory does not hold both, the teacher is online.
    """
    online, answers = teachers.online(network, autocast), len(images) * images.count
    small, known = answers * classes * 4 <= SMALL, memory != "online" and _kept.get(key)
    if memory == "auto" and not known:
        pays = images.count <= epochs if small else teachers.share(epochs, images.count) <= WORTH
        memory = "remembered" if pays else "online"
    if memory == "online":
        return online
    if small:
        return teachers.remembered(network, autocast, images, classes)
    if known:
        known.ask = online
        return known
    forget()
    dtype = teachers.table_type(network, autocast, images)
    needed, free = answers * (classes * dtype.itemsize + 1), machine.free_memory(images.device)
    if needed + reserve > SAFE * free:
        sizes = (f"{size / 1e9:.1f} GB" for size in (needed, reserve, free))
        room = "{} beside the {} of training, and {} are free".format(*sizes)
        why = f"remembering its answers takes {room} on {images.device}"
        warnings.warn(f"the teacher is asked online: {why}", stacklevel=2)
        return online
    teacher = teachers.Remembered(network, autocast, images, classes, dtype)
    if key is not None:
        _kept[key] = teacher
    return teacher


def forget():
    """Free the table of answers that is kept for the next student."""
    _kept.clear()
