"""Our loop, as turns: training an epoch, asking a teacher, raising a chain of networks."""

import math
from functools import partial
from types import SimpleNamespace

import torch
from case import sgd

from banlib import teachers
from banlib.loop import train_epoch
from banlib.objectives import objective_loss
from banlib.runs import accelerate, machine
from banlib.runs.fit import Training
from banlib.views import draw_epoch


def ours(case, teacher):
    """A turn of `loop.train_epoch`: a function of the number of images.

    teacher: None, "online", or "answered": remembered, and nothing left to ask.
    """
    asked = teacher and teachers.online(case.placed(), case.autocast)
    if teacher == "answered":
        asked = memory(case)
        asked.known.fill_(True)
        asked.table.zero_()
    return epoch_of(case, asked)


def epoch_of(case, teacher):
    """train(images, epoch=1): an epoch of a new student, in the settings and with the checks of
    `runs.fit`."""
    student = case.placed()
    optimizer = sgd(student, foreach=True)
    loss = partial(objective_loss, "label+teacher" if teacher else "label")
    bad = torch.zeros((), dtype=torch.int64, device=case.device)
    state = SimpleNamespace(optimizer=optimizer, steps=0, bad=bad, limit=math.inf)
    check = partial(Training.before_step, state)
    accelerate.apply(case.accelerate, student, case.images, case.batch, case.autocast)
    material = student, optimizer, loss, case.images, case.labels

    def train(images, epoch=1):
        order, views = drawn(case, images, epoch)
        with machine.own_settings(case.device.type):
            if isinstance(teacher, teachers.Remembered):
                teacher.fill(order, views)
            how = order, views, case.batch, teacher, case.autocast, check
            return train_epoch(*material, *how)

    return train


def fill(case):
    """A turn of asking the teacher about pairs of image and view that it has not answered yet."""
    teacher = memory(case)

    def turn(images):
        teacher.known.zero_()
        with machine.own_settings(case.device.type):
            teacher.fill(*drawn(case, images))

    return turn


def raising(case, epochs, chain):
    """Turns of whole small trainings of so many epochs: {name: turn}.

    On labels; then students of one teacher who remembers, one after the other; then generations,
    each of which has a new teacher.
    """

    def whole(teacher, forgets):
        train = epoch_of(case, teacher)

        def turn(images):
            if forgets:
                teacher.known.zero_()
            for epoch in range(1, epochs + 1):
                train(images // epochs, epoch)

        return turn

    one = memory(case)
    turns = {"chain/plain": whole(None, False)}
    turns |= {f"students/{number}": whole(one, number == 1) for number in chain}
    return turns | {f"generations/{number}": whole(memory(case), True) for number in chain}


def drawn(case, images, epoch=1):
    """Order and views of an epoch, on the device."""
    return [part.to(case.device) for part in draw_epoch(epoch, images, case.images.count)]


def memory(case):
    return teachers.Remembered(case.placed(), case.autocast, case.images, 100, torch.float16)
