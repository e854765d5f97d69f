"""One run, from a spec to a trained network: `fit` claims it, `Training` takes it to its end.

Order, views and dropout of an epoch are functions of (seed, generation, epoch), not of history, so
a resumed run sees what an undisturbed one would have seen.
"""

import contextlib
import inspect
import math
import os
import re
import sys
import threading
import time
import warnings
from functools import partial

import torch
from tqdm import tqdm

from banlib import loop, models, teachers
from banlib.objectives import objective_loss
from banlib.runs import accelerate as speed_ups
from banlib.runs import datasets, machine
from banlib.runs.networks import load_teacher, network_of, new_network, pack, tested, unpack
from banlib.runs.recipe import FORMAT, named
from banlib.runs.store import Diverged, RunMissing, Store
from banlib.views import Augmented, draw_epoch

__all__ = ["fit", "network_of", "new_network", "Diverged", "OutOfTime"]

SAVE_SECONDS = 10  # of training, at least, from one resume point to the next
EXPLODED = 50  # a loss this many times that of guessing is divergence, long before it overflows
NO_MEMORY = re.compile("allocate memory|out of memory|not enough memory|bad.?alloc", re.I)
SAME = ("hardware", "device", "precision", "layout", "threads", "torch", "teacher", "accelerate")

last_moment = math.inf  # a time.monotonic() at which every run here stops, as with `until`
_turn = threading.Lock()
tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind


class OutOfTime(RuntimeError):
    """Training stopped because its time was up. Finished epochs are kept: start it again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def fit(
    spec,
    store=None,
    device="auto",
    threads=None,
    progress=True,
    until=math.inf,
    teacher_memory="auto",
    deterministic=False,
    accelerate=(),
):
    """Train what spec describes, or load it if the store has it; returns the `store.Run`.

    threads: of the CPU, None leaves torch's choice. until: a time.monotonic() at which it stops,
    with OutOfTime. Stopped or killed at any moment, the same call goes on.
    These move last bits at most, and are recorded: teacher_memory, of `accelerate.MEMORIES`;
    deterministic, see `machine.own_settings`; accelerate, any of `accelerate.NAMES`.
    Raises Diverged, ValueError (teacher and student do not fit), RunDamaged, RuntimeError.
    """
    store, what = store or Store(), f"{spec.network} {spec.name} (run {spec.run_id})"
    named("teacher_memory", teacher_memory, speed_ups.MEMORIES)
    how = {"deterministic": deterministic}
    how["accelerate"] = [named("speed-up", name, speed_ups.NAMES) for name in accelerate]
    device = machine.choose_device(device)
    machine.keep_freed_memory()
    own = machine.own_settings(device.type, threads, deterministic)
    with alone(), own, failures_told(what, device):
        dataset = datasets.load(spec.dataset)
        if dataset.digest != spec.dataset_digest:
            here, wanted = dataset.digest[:16], spec.dataset_digest[:16]
            raise ValueError(f"{spec.dataset} here has digest {here}…, the spec expects {wanted}…")
        _, *litter = store.places(spec.run_id)  # of a crash just after the commit
        if store.status(spec.run_id) == "finished" and not any(map(os.path.exists, litter)):
            return store.load(spec.run_id)
        if spec.format != FORMAT:
            own = f"this version of banlib trains format {FORMAT}: write the plan again"
            raise ValueError(f"{what} has format {spec.format}, {own}")
        if spec.imported:
            raise RunMissing(f"{what} has imported weights: `banlib runs import` them again")
        if time.monotonic() > until:
            raise OutOfTime(f"{what} was not begun")
        teacher = load_teacher(spec, store, dataset) if spec.teacher else None
        student = new_network(spec, dataset)
        if spec.share_ends:
            models.share_ends(student, teacher)
        with store.claim(spec, partial(check_time, what, until)) as work:
            if sentence := work.diverged():
                raise Diverged(f"{sentence}; `banlib runs rm {spec.run_id}` forgets it")
            if not work.finished.exists():
                networks = student, teacher, teacher_memory
                Training(what, spec, work, networks, dataset, device, until, how).run(progress)
    return store.load(spec.run_id)


@contextlib.contextmanager
def alone():
    """One run trains in a process at a time: its threads share random generators and settings."""
    if not _turn.acquire(blocking=False):
        shared = "share its random numbers, so they take turns; --jobs trains side by side"
        warnings.warn(f"runs in threads of one process {shared}", stacklevel=4)
        _turn.acquire()
    try:
        yield
    finally:
        _turn.release()


class SGD(torch.optim.SGD):
    """torch's, without guards for its compiler, which would be imported: it takes two seconds."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)


class Training:
    """A run under way: what its epochs need, and what is known of those that are finished."""

    def __init__(self, what, spec, work, networks, dataset, device, until, how):
        self.what, self.spec, self.work, recipe = what, spec, work, spec.recipe
        self.until, self.started = until, time.perf_counter()
        rows, tensors, self.environments = work.resume()
        self.finished, self.saved, self.last_save = (rows, tensors), len(rows), time.monotonic()

        self.student, teacher, memory = networks
        numerics = machine.numerics(recipe.precision, device)
        layout, self.autocast = numerics.memory_format, watched(what, numerics, device, until)
        shape, reserve, recomputed = dataset.train.images.shape[1:], 0, False
        if "compile" not in how["accelerate"]:  # a compiler weighs memory by itself
            step = self.student, shape, recipe.batch, numerics.precision, device
            reserve, recomputed = speed_ups.fit_memory(*step)
        environment = machine.describe(device, numerics) | how | {"recomputed": recomputed}
        self.student.to(device, memory_format=layout)
        own = {name: getattr(recipe, name) for name in ("momentum", "weight_decay", "nesterov")}
        # foreach: a loop's bits in 3/4 of its time, unlike fused
        self.optimizer = SGD(self.student.parameters(), recipe.lr, **own, foreach=True)
        if tensors:
            unpack(tensors, self.student, self.optimizer)

        dataset = dataset.to(device)
        crops, center = (recipe.pad, recipe.flip, recipe.border), (dataset.mean, dataset.std)
        self.images = Augmented(dataset.train, *center, *crops, layout)
        looked_at = Augmented(dataset.test, *center, 0, False, "reflect", layout)
        self.test = self.student, looked_at, dataset.test.labels, self.autocast
        self.labels = dataset.train.labels
        classes, self.teacher = len(dataset.classes), None
        if teacher is not None:
            teacher = teacher.to(device, memory_format=layout)
            key = (spec.teacher, self.images.views, numerics, device, torch.get_num_threads())
            asked = teacher, self.autocast, self.images, classes, recipe.epochs
            self.teacher = speed_ups.choose_teacher(*asked, memory, key, reserve)
            environment["teacher"] = teachers.kind(self.teacher)
        if self.environments:
            warn_if_moved(spec, self.environments[-1], environment)
        self.environments.append(environment)
        self.generator = torch.Generator(device)  # the objective's
        self.bad = torch.zeros((), dtype=torch.int64, device=device)  # number of the first bad step
        weight = spec.label_weight + spec.teacher_weight * spec.temperature**2
        self.limit = EXPLODED * weight * math.log(classes)
        speed_ups.apply(how["accelerate"], self.student, self.images, recipe.batch, self.autocast)

    def run(self, progress):
        """Train the epochs that are missing, and commit. What stops it loses no finished epoch."""
        spec, count = self.spec, len(self.images)
        shown = {"unit": "img", "unit_scale": True, "dynamic_ncols": True, "file": sys.stderr}
        shown |= {"total": spec.recipe.epochs * count, "initial": self.saved * count}
        shown |= {"mininterval": 0.5 if sys.stderr.isatty() else 10, "disable": not progress}
        name = f"{spec.network} {spec.name} seed {spec.seed} on {self.images.device}"
        with tqdm(desc=name, **shown) as bar:
            try:
                probabilities = None
                for epoch in range(self.saved + 1, spec.recipe.epochs + 1):
                    probabilities = self.epoch(epoch, bar)
                if probabilities is None:  # stopped between the last epoch and the commit
                    probabilities, *_ = tested(*self.test)
                self.commit(probabilities)
            except Diverged as stop:  # it is noted: such a run never becomes a teacher
                epoch, (step, why) = len(self.finished[0]) + 1, stop.args
                lr = spec.recipe.lr_at(epoch)
                where = f"in epoch {epoch}, step {step}, at learning rate {lr:g}"
                sentence = f"{self.what} diverged {where}: {why}"
                self.work.give_up(sentence, epoch=epoch, step=step, lr=lr)
                raise Diverged(sentence) from None
            except BaseException as stop:
                with contextlib.suppress(Exception):
                    self.save()
                if isinstance(stop, OutOfTime):
                    done = f"{self.saved} of {spec.recipe.epochs} epochs"
                    raise OutOfTime(f"{self.what} has {done}") from None
                if isinstance(stop, KeyboardInterrupt):
                    where = f"interrupted in epoch {len(self.finished[0]) + 1}"
                    again = f"run it again to go on after epoch {self.saved}"
                    bar.write(f"{where}; {again}", sys.stderr)
                raise

    def epoch(self, epoch, bar):
        """Train an epoch, test where it is due, and note both; the test probabilities or None."""
        rows, _ = self.finished
        recipe, begun, probabilities = self.spec.recipe, time.perf_counter(), None
        if time.monotonic() + (rows[-1]["seconds"] if rows else 0) > self.until:
            raise OutOfTime
        loss, error = self.train(epoch, bar.update)
        row = {"epoch": epoch, "lr": recipe.lr_at(epoch), "train_loss": loss, "train_error": error}
        row["train_seconds"] = round(time.perf_counter() - begun, 4)
        if epoch % recipe.test_every == 0 or epoch == recipe.epochs:
            probabilities, row["test_error"], row["test_nll"] = tested(*self.test)
            if not math.isfinite(row["test_nll"]):  # the epoch's last step spoilt the weights
                raise Diverged(self.steps, f"the test loss is {row['test_nll']:g}")
        row["seconds"] = round(time.perf_counter() - begun, 4)
        self.finished = [*rows, row], pack(self.student, self.optimizer)
        shown = ("train_loss", "train_error", "test_error")
        bar.set_postfix({name: row[name] for name in shown if name in row}, refresh=False)
        if time.monotonic() - self.last_save >= SAVE_SECONDS:
            self.save()
        return probabilities

    def train(self, epoch, after_step):
        """`loop.train_epoch`: (mean loss in nats, training error in %)."""
        spec, device = self.spec, self.images.device
        for group in self.optimizer.param_groups:
            group["lr"] = spec.recipe.lr_at(epoch)
        self.generator.manual_seed(spec.stream("objective", epoch))
        self.steps = 0
        drawn = draw_epoch(spec.stream("epoch", epoch), len(self.images), self.images.count)
        order, views = (part.to(device) for part in drawn)
        if isinstance(self.teacher, teachers.Remembered):
            self.teacher.fill(order, views)
        learner, material = (self.student, self.optimizer, self.loss), (self.images, self.labels)
        watch = self.teacher, self.autocast, self.before_step, after_step
        with machine.seeded(spec.stream("dropout", epoch), device):
            result = loop.train_epoch(*learner, *material, order, views, spec.recipe.batch, *watch)
        if self.bad > 0:
            raise Diverged(int(self.bad), "loss or gradient not finite, or exploded")
        return result

    def loss(self, logits, labels, answers):
        spec = self.spec
        terms = spec.temperature, spec.weights, self.generator
        return objective_loss(spec.objective, logits, labels, answers, *terms)

    def before_step(self, loss):
        """Raise Diverged before a step that a bad loss or gradient would spoil.

        On CUDA, where looking would stall the device, it is noted there, for the epoch's end.
        """
        weights = (weight for group in self.optimizer.param_groups for weight in group["params"])
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        good = (loss < self.limit) & norm.isfinite()  # a NaN loss compares false
        self.steps += 1
        if self.bad.is_cuda:
            self.bad.copy_(torch.where(good | (self.bad > 0), self.bad, self.steps))
        elif not good:
            what = f"the loss is {loss.item():g}, the gradient's norm {norm.item():g}"
            raise Diverged(self.steps, what)

    def save(self):
        """Write a resume point of the newest finished epoch, if there is none yet."""
        rows, tensors = self.finished
        if len(rows) > self.saved and not self.work.finished.exists():
            self.work.save(len(rows), tensors, rows, self.environments)
        self.saved, self.last_save = len(rows), time.monotonic()

    def commit(self, probabilities):
        rows, count = self.finished[0], len(self.images)
        seconds = sum(row["train_seconds"] for row in rows)
        names = ("test_error", "test_nll", "train_error", "train_loss")
        results = {name: rows[-1][name] for name in names} | {
            "params": sum(parameter.numel() for parameter in self.student.parameters()),
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "images_per_second": round(count * len(rows) / seconds, 1),
            "last_start_seconds": round(time.perf_counter() - self.started, 3),
        }
        outputs = self.student.state_dict(), probabilities, self.test[2].cpu()
        self.work.commit(results, rows, self.environments, *outputs)


def watched(what, numerics, device, until):
    """The context of each forward pass, of student and teacher: the clock is looked at there."""

    def autocast():
        check_time(what, until)
        return numerics.autocast(device)

    return autocast


def check_time(what, until):
    if time.monotonic() > min(until, last_moment):
        raise OutOfTime(f"{what} is not finished")


def warn_if_moved(spec, before, now):
    moved = [name for name in SAME if name in before and before[name] != now.get(name)]
    if moved:
        changes = ", ".join(f"{name} {before[name]} -> {now.get(name)}" for name in moved)
        void = "it will not be bit-identical to one that never stopped; both are recorded"
        conditions = f"goes on under other conditions ({changes})"
        warnings.warn(f"run {spec.run_id} {conditions}: {void}", stacklevel=2)


@contextlib.contextmanager
def failures_told(what, device):
    """What the device or the compiler could not do, as a sentence that names the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            free = f"{machine.free_memory(device) / 1e9:.1f} GB free now"
            out = "take fewer jobs, a device with more, or a smaller network"
            sentence = f"{what} needs more memory than {device} has ({free}): {out}"
            raise RuntimeError(sentence) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = str(error).strip().partition("\n")[0]
            sentence = f"{what} cannot be compiled here ({first}): train it without compile"
            raise RuntimeError(sentence) from error
        raise
