"""The paper, as a loop: train a network, let it teach a fresh one, repeat (section 2)."""

from contextlib import nullcontext

import torch


def born_again(train, generations):
    """[teacher, BAN-1, ..., BAN-k]: each is trained from scratch, taught by the one before it.

    train(generation, teacher) returns whatever stands for a trained network. The teacher is None
    for generation 0, which learns from the labels alone.
    """
    lineage = [train(0, None)]
    for generation in range(1, generations + 1):
        lineage.append(train(generation, lineage[-1]))
    return lineage


def train_epoch(
    student,
    optimizer,
    loss,
    images,
    labels,
    order,
    views,
    batch,
    teacher=None,
    autocast=nullcontext,
    before_step=lambda loss: None,
    after_step=lambda images: None,
):
    """One pass over the training images: (mean loss in nats, training error in %).

    loss(student_logits, labels, teacher_logits): of a batch, see `objectives`.
    images: `views.Augmented`; labels: int64 [n]; order, views: int64 [n], a permutation of the
    images and the view of each. teacher(batch, indices, views) -> logits, see `teachers`, or None.
    before_step(loss) is called when the gradients are known and no weight has moved, after_step(k)
    after each step, with its number of images. No step waits for the device.
    """
    student.train()
    total = torch.zeros((), device=labels.device)
    wrong = torch.zeros_like(total, dtype=torch.int64)
    for indices, view in zip(order.split(batch), views.split(batch), strict=True):
        inputs, targets = images.batch(indices, view), labels[indices]
        answers = teacher(inputs, indices, view) if teacher else None
        with autocast():
            logits = student(inputs)
        value = loss(logits, targets, answers)
        optimizer.zero_grad()
        value.backward()
        before_step(value.detach())
        optimizer.step()
        total += value.detach() * len(indices)
        wrong += (logits.detach().argmax(1) != targets).sum()
        after_step(len(indices))
    return total.item() / len(order), 100 * wrong.item() / len(order)


@torch.no_grad()
def predict(network, images, autocast=nullcontext, batch=500):
    """Logits of images as they are, without crops or flips: float32 [n, classes]."""
    network.eval()
    parts = []
    for indices in torch.arange(len(images), device=images.device).split(batch):
        with autocast():
            parts.append(network(images.plain(indices)).float())
    return torch.cat(parts)
