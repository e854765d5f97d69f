"""What the teacher says about a batch: asked each time, or remembered per (image, view).

A teacher is a function of the student's own augmented batch, so both see the same pixels:
teacher(batch, indices, views) -> logits. A remembered answer is the online one up to the order of
sums and, in a float16 table, to a measured rounding (`HALF`).
"""

import torch
import torch.nn.functional as F

ASKED_AT_ONCE = 64  # images in each batch by which a table is filled on a CPU
HALF = 1e-3  # largest change of a probability for which answers are kept as float16, else float32


def frozen(network):
    """The network in eval mode: its BatchNorm buffers do not move, its weights get no gradient."""
    return network.eval().requires_grad_(False)


def online(network, autocast):
    """A teacher that runs its network on every batch. autocast() is a context manager."""
    network = frozen(network)

    def teacher(batch, indices, views):
        with torch.no_grad(), autocast():
            return network(batch)

    return teacher


class Remembered:
    """A teacher that is asked once about each (image, view): `fill` asks, calls look up.

    images: `views.Augmented`. The table is [images, views, classes] on their device: 50,000 x 162 x
    100 float16 are 1.6 GB, touched as they are filled. On a CPU an answer has the same bits
    whatever is asked beside it, so a resumed run, whose table starts empty, sees the same teacher.
    """

    def __init__(self, network, autocast, images, classes, dtype=torch.float32):
        self.ask, self.images = online(network, autocast), images
        pairs, device = (len(images), images.count), images.device
        self.table = torch.empty(*pairs, classes, dtype=dtype, device=device)
        self.known = torch.zeros(pairs, dtype=torch.bool, device=device)

    def __call__(self, batch, indices, views):
        return self.table[indices, views].float()

    def fill(self, indices, views):
        """Ask about the pairs (indices[i], views[i]) that are unknown; int64 [n], no pair twice."""
        missing = ~self.known[indices, views]
        indices, views = indices[missing], views[missing]
        for part in seats(indices) if len(indices) else ():
            answers, taken = self.answer(indices[part], views[part]), part >= 0
            pairs = indices[part[taken]], views[part[taken]]
            self.table[pairs] = answers[taken].to(self.table.dtype)
        self.known[indices, views] = True

    def answer(self, indices, views):
        """The network's logits, now: float32 [n, classes]."""
        return self.ask(self.images.batch(indices, views), indices, views).float()


def remembered(network, autocast, images, classes):
    """A `Remembered` that knows every (image, view) already, in float32 and one fixed order."""
    teacher = Remembered(network, autocast, images, classes)
    for view in range(images.count):
        for indices in torch.arange(len(images), device=images.device).split(512):
            teacher.table[indices, view] = teacher.answer(indices, torch.full_like(indices, view))
    teacher.known[:] = True
    return teacher


def kind(teacher):
    """How a teacher answers, in words to record with a run: "online", "remembered in float16"."""
    remembers = isinstance(teacher, Remembered)
    return f"remembered in {teacher.table.dtype}".replace("torch.", "") if remembers else "online"


def share(epochs, views):
    """The share of an online teacher's forward passes that filling a table takes, in all epochs.

    Each epoch draws one of the views of each image; a pair is asked about when first drawn.
    """
    return views * (1 - (1 - 1 / views) ** epochs) / epochs


def table_type(network, autocast, images):
    """float16 if it moves no probability in a batch of answers by more than HALF, else float32."""
    batch = images.plain(torch.arange(256, device=images.device) % len(images))
    logits = online(network, autocast)(batch, None, None).float()
    moved = (logits.softmax(1) - logits.half().float().softmax(1)).abs().max()
    return torch.float16 if moved <= HALF else torch.float32  # an overflow is NaN: false


def seats(indices):
    """Which images to ask about together: rows of places 0..n-1, each once, -1 for an empty seat.

    A matrix product's last bits can depend on the row (those of MKL for ten classes do), but not on
    the other rows. So on a CPU every batch has one size, and image i has seat i % ASKED_AT_ONCE.
    About a tenth are empty: there the last image is asked about and not heard. CUDA promises no
    bits and has no seats.
    """
    places = torch.arange(len(indices), device=indices.device)
    if indices.is_cuda:
        return places.split(8 * ASKED_AT_ONCE)
    seat = indices % ASKED_AT_ONCE
    # A seat's k-th image is in batch k.
    batch = F.one_hot(seat, ASKED_AT_ONCE).cumsum(0)[places, seat] - 1
    plan = torch.full((int(batch.max()) + 1, ASKED_AT_ONCE), -1)
    plan[batch, seat] = places
    return plan
