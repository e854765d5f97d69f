"""The usual loop: a DataLoader with worker processes and torchvision's transforms, float32,
contiguous, eager, the teacher asked about every batch."""

import contextlib
import os

import torch
import torch.nn.functional as F
from case import RECIPE, sgd


def usual_epoch(loader, student, optimizer, teacher, device, autocast=contextlib.nullcontext):
    """An epoch as it is usually written: the mean loss in nats.

    loader: yields (images, labels); teacher: a network in eval mode, or None.
    """
    student.train()
    total, count = torch.zeros((), device=device), 0
    for images, labels in loader:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with autocast():
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(images).softmax(1)
                loss = loss + F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + loss.detach() * len(labels), count + len(labels)
    return total.item() / count


def usual(case, taught, autocast=contextlib.nullcontext):
    """A turn of the usual loop: a function of the number of images."""
    student = case.network().to(case.device)
    teacher = case.network().to(case.device).eval() if taught else None
    optimizer, order = sgd(student), Shuffled()
    loader = torch.utils.data.DataLoader(
        Photos(case.dataset),
        case.batch,
        sampler=order,
        persistent_workers=True,
        num_workers=min(8, os.cpu_count()),
        pin_memory=case.device.type == "cuda",
    )

    def turn(images):
        order.count = images
        usual_epoch(loader, student, optimizer, teacher, case.device, autocast)

    return turn


class Photos(torch.utils.data.Dataset):
    """Training images as torchvision's datasets give them: PIL images through a transform."""

    def __init__(self, dataset):
        from torchvision import transforms

        split, crop = dataset.train, {"padding": RECIPE.pad, "padding_mode": RECIPE.border}
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, **crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean.tolist(), dataset.std.tolist()),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Shuffled:
    """A sampler: the first `count` images in a new order each time, without new workers."""

    count = 0

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(torch.randperm(self.count).tolist())
