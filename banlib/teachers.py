"""What the teacher says about a batch: computed online, or remembered per (image, view).

A teacher is a frozen network in eval mode. It is called with the student's own augmented batch, so both always see
the same pixels: `teacher(batch, indices, views) -> logits`.
"""

import torch

REMEMBER_AT_MOST = 64 * 2**20  # bytes of logits that are remembered without being asked: digits, not CIFAR


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


def remembered(network, autocast, augmented, count, classes):
    """A teacher that has already answered every (image, view); float32, so the answers are those of `online`
    up to the order of sums.

    augmented: the training images (`data.Augmented`); count: how many; the table is [count, views, classes].
    It is filled in one fixed order, so a resumed run sees the same bits.
    """
    asked = online(network, autocast)
    views = augmented.count
    table = torch.empty(count, views, classes, device=augmented.device)
    for view in range(views):
        for indices in torch.arange(count, device=table.device).split(512):
            same = torch.full_like(indices, view)
            table[indices, view] = asked(augmented.batch(indices, same), indices, same).float()

    def teacher(batch, indices, views):
        return table[indices, views]

    return teacher


def choose(network, autocast, augmented, count, classes, epochs):
    """Remember where the table is small and filling it costs less than asking each epoch; otherwise ask online."""
    small = count * augmented.count * classes * 4 <= REMEMBER_AT_MOST
    if small and augmented.count <= epochs:
        return remembered(network, autocast, augmented, count, classes)
    return online(network, autocast)
