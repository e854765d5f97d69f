"""One generation, from a spec to a trained network.

`fit` is the walk: claim the run, resume or start, train epoch by epoch, commit. `Step` is one step of the optimizer,
`train_epoch` the hot loop: no disk, no worker processes. Order, views and dropout of an epoch are functions of (seed,
generation, epoch), not of history, so a resumed run sees what an undisturbed one would have seen.
"""

import contextlib
import hashlib
import math
import sys
import time
import warnings
from typing import NamedTuple

import torch
from tqdm import tqdm

from banlib import data, machine, models, teachers
from banlib.machine import choose_device, seeded
from banlib.objectives import objective_loss
from banlib.recipe import BadInput, named
from banlib.store import Diverged, RunDamaged, RunMissing, Store

EXPLODED = 50  # a loss this many times that of guessing is counted as divergence, long before it overflows


class OutOfTime(RuntimeError):
    """Training stopped because its time was up. Finished epochs are kept, and the same call goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: start it again


class How(NamedTuple):
    """How a run is trained, not what: these move last bits at most, are recorded with the run, and are not hashed.

    teacher_memory: "auto", "online" or "remembered", see `teachers.choose`.
    compile: the student by torch.compile, which costs minutes before the first step: True, False, or "auto", see
    `machine.choose`.
    deterministic: only operations with the same bits each time, and no choice by timing.
    cuda_graph, pad_channels: see `Step` and `models.pad_channels`. Neither has been tried on a GPU yet: off by default.
    """

    teacher_memory: str = "auto"
    compile: bool | str = "auto"
    deterministic: bool = False
    cuda_graph: bool = False
    pad_channels: bool = False

    def checked(self):
        named("teacher_memory", self.teacher_memory, teachers.MEMORIES)
        if self.compile not in (True, False, "auto"):
            raise BadInput(f"compile must be True, False or 'auto', got {self.compile!r}")
        return self


def fit(spec, store=None, device="auto", threads=None, progress=True, until=math.inf, **how):
    """Train what spec describes, or load it if the store has it; returns the `store.Run`.

    device: "auto", "cpu", "cuda", "cuda:1"; threads: CPU threads (None leaves torch's choice); how: see `How`.
    until: a time.time() by which it stops, with OutOfTime: no epoch is begun that the one before says would end later.
    Interrupted at any moment, the same call goes on after the last finished epoch.
    Raises Diverged (NaN, infinite or exploding loss), ValueError (teacher and student do not fit), RunDamaged,
    RuntimeError (it needs more memory than the device has, or cannot be compiled).
    """
    store, how = store or Store(), How(**how).checked()
    machine.keep_freed_memory()
    device = choose_device(device)
    dataset = data.load(spec.dataset)
    if dataset.digest != spec.dataset_digest:
        raise ValueError(
            f"{spec.dataset} here has digest {dataset.digest[:16]}…, the spec expects {spec.dataset_digest[:16]}…"
        )
    if store.status(spec.run_id) == "finished":
        store.tidy(spec.run_id)
        return store.load(spec.run_id)
    if time.time() > until:
        raise OutOfTime(f"{spec.network} {spec.name} (run {spec.run_id}) was not begun")
    teacher = load_teacher(spec, store, dataset) if spec.teacher else None
    if spec.share_ends:
        models.share_ends(new_network(spec, dataset), teacher)  # refuses what does not fit before anything is created
    with store.claim(spec) as work, thread_count(threads), machine.deterministic(how.deterministic):
        if not work.finished.exists():
            if sentence := work.diverged():
                raise Diverged(f"{sentence}; `banlib runs rm {spec.run_id}` forgets it")
            with failures_told(spec, device):
                train(spec, work, teacher, dataset, device, progress, how, until)
    return store.load(spec.run_id)


def train(spec, work, teacher, dataset, device, progress, how, until=math.inf):
    recipe, started = spec.recipe, time.perf_counter()
    student = new_network(spec, dataset)
    if spec.share_ends:
        models.share_ends(student, teacher)
    resumed = work.resume()
    rows, environments = (resumed[2]["rows"], resumed[2]["environments"]) if resumed else ([], [])
    count, shape = len(dataset.train.labels), dataset.train.images.shape[1:]
    steps = (recipe.epochs - len(rows)) * math.ceil(count / recipe.batch)
    numerics, tried = numerics_as_before(environments, device, how), None
    if numerics is None:
        numerics, tried = machine.choose(
            student, shape, recipe.batch, recipe.precision, device, steps, how.compile, not how.deterministic
        )
    numerics = numerics._replace(padded=how.pad_channels)
    needed, recomputed = room_for(student, shape, recipe.batch, numerics, device)
    numerics.place(student, device)
    optimizer = torch.optim.SGD(  # foreach: the same bits as a loop over parameters, in 3/4 of its time; fused has others
        student.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov,
        foreach=True,
    )  # fmt: skip
    if resumed:
        unpack(resumed[1], student, optimizer)
    environment = machine.describe(device, numerics) | {
        "deterministic": how.deterministic, "cuda_graph": how.cuda_graph, "recomputed": recomputed}  # fmt: skip
    if tried:
        environment["trial"] = {way: round(seconds, 5) for way, seconds in tried.items()}
    environments.append(environment)
    work.log(rows, fresh=True)

    dataset = dataset.to(device)
    images = data.Augmented(dataset.train, dataset.mean, dataset.std, recipe.pad, recipe.flip, recipe.border)
    labels = dataset.train.labels
    if teacher is not None:
        key = (spec.teacher, images.views, numerics[:2], device, torch.get_num_threads())
        teacher = teachers.choose(
            teacher.to(device, memory_format=numerics.memory_format), lambda: numerics.autocast(device), images, count,
            len(dataset.classes), recipe.epochs, how.teacher_memory, numerics.memory_format, key, needed,
        )  # fmt: skip
        environment["teacher"] = teachers.kind(teacher)
    if resumed:
        warn_if_moved(spec, environments[-2], environment)
    if numerics.compiled:
        student.compile(dynamic=False)
    take_step = Step(spec, student, optimizer, images, labels, teacher, numerics, how.cuda_graph)
    test = lambda: evaluate(student, dataset, numerics)  # noqa: E731

    seen, probabilities = {}, None
    bar = tqdm(
        total=recipe.epochs * count, initial=len(rows) * count, unit="img", unit_scale=True, disable=not progress,
        desc=f"{spec.network} {spec.name} seed {spec.seed} on {device}", mininterval=0.5 if sys.stderr.isatty() else 10,
        file=sys.stderr, dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        for epoch in range(len(rows) + 1, recipe.epochs + 1):
            begun = time.perf_counter()
            if time.time() + (rows[-1]["seconds"] if rows else 0) > until:
                raise OutOfTime(f"{spec.network} {spec.name} (run {spec.run_id}) has {len(rows)} of {recipe.epochs} epochs")
            try:
                loss, error = train_epoch(take_step, epoch, bar.update)
                row = {"epoch": epoch, "lr": recipe.lr_at(epoch), "train_loss": loss, "train_error": error}
                row["train_seconds"] = round(time.perf_counter() - begun, 4)
                if epoch % recipe.test_every == 0 or epoch == recipe.epochs:
                    probabilities, row["test_error"], row["test_nll"] = test()
                    seen["test"] = f"{row['test_error']:.2f} %"
                    if not math.isfinite(row["test_nll"]):  # the epoch's last step spoilt the weights
                        raise Diverged(math.ceil(count / recipe.batch), f"the test loss is {row['test_nll']:g}")
            except Diverged as stop:
                step, what = stop.args
                sentence = (f"{spec.network} {spec.name} (run {spec.run_id}) diverged in epoch {epoch}, step {step}, "
                            f"at learning rate {recipe.lr_at(epoch):g}: {what}")  # fmt: skip
                work.give_up(sentence, epoch=epoch, step=step, lr=recipe.lr_at(epoch))
                raise Diverged(sentence) from None
            except KeyboardInterrupt:
                bar.write(f"interrupted in epoch {epoch}; run it again to go on after epoch {epoch - 1}", sys.stderr)
                raise
            seen |= {"loss": f"{loss:.3f}", "train": f"{error:.1f} %"}
            bar.set_postfix(seen, refresh=False)
            row["seconds"] = round(time.perf_counter() - begun, 4)
            rows.append(row)
            work.save(epoch, pack(student, optimizer), rows, environments)
            work.log(rows)
        if probabilities is None:  # resumed between the last epoch and the commit
            probabilities, *_ = test()

    seconds = sum(row["train_seconds"] for row in rows)
    results = {
        **{name: rows[-1][name] for name in ("test_error", "test_nll", "train_error", "train_loss")},
        "params": sum(parameter.numel() for parameter in student.parameters()),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "images_per_second": round(count * len(rows) / seconds, 1),
        "last_start_seconds": round(time.perf_counter() - started, 3),
    }
    weights = {name: tensor.cpu().contiguous() for name, tensor in student.state_dict().items()}
    work.commit(results, rows, environments, weights, probabilities, dataset.test.labels.cpu())


def room_for(student, shape, batch, numerics, device):
    """(bytes that training takes, about; whether dense units recompute): the latter where memory is too small otherwise.

    It changes no bits. A compiled network is left alone, since its compiler weighs memory against arithmetic by itself.
    """
    needed, free = machine.step_memory(student, shape, batch, numerics.precision), teachers.free_memory(device)
    if numerics.compiled or needed <= teachers.SAFE * free:
        return needed, False
    units = models.recompute(student)
    less = machine.step_memory(student, shape, batch, numerics.precision) if units else needed
    if less > teachers.SAFE * free:
        teachers.forget()  # an earlier student's table of answers
    if not units:
        return needed, False
    warnings.warn(f"training takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on {device}: dense units compute "
                  f"again what they would keep, which is slower and takes {less / 1e9:.1f} GB")  # fmt: skip
    return less, True


class Step:
    """One step of the optimizer, as a function of a batch's image indices and views (both int64 [batch]).

    teacher: see `teachers`, or None. It sums loss and wrong answers on the device since `begin`, and waits for the
    device nowhere but on a CPU, so that with `graph` CUDA records it once for each learning rate and replays it, without
    the processor's time for each kernel (on a CPU `graph` goes the same way, with the function in place of the record).
    Batches of another size than the recipe's, the last of an epoch, are computed as ever.
    """

    def __init__(self, spec, student, optimizer, images, labels, teacher=None, numerics=machine.REFERENCE, graph=False):
        self.spec, self.student, self.optimizer, self.teacher = spec, student, optimizer, teacher
        self.images, self.labels, self.numerics, self.graph = images, labels, numerics, graph
        self.device = labels.device
        self.parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        largest = spec.label_weight + spec.teacher_weight * spec.temperature**2
        self.limit = EXPLODED * largest * math.log(student_classes(student))
        self.generator = torch.Generator(self.device)  # the objective's
        self.loss = torch.zeros((), device=self.device)
        self.wrong, self.number, self.bad = (torch.zeros_like(self.loss, dtype=torch.int64) for _ in range(3))
        self.record = None  # (learning rate, function that replays)

    def begin(self, epoch):
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.recipe.lr_at(epoch)
        self.generator.manual_seed(stream(self.spec, "objective", epoch))
        for total in (self.loss, self.wrong, self.number, self.bad):
            total.zero_()
        self.student.train()

    def __call__(self, indices, views):
        if not self.graph or len(indices) != self.spec.recipe.batch:
            return self.compute(indices, views)
        lr = self.optimizer.param_groups[0]["lr"]
        if self.record is None or self.record[0] != lr:
            self.record = None  # frees the memory of the old one first
            self.record = lr, self.recorded(indices, views)
        self.record[1](indices, views)

    def compute(self, indices, views):
        """Raises Diverged on a CPU before the optimizer's step that a bad loss or gradient would have spoilt."""
        batch = self.images.batch(indices, views).contiguous(memory_format=self.numerics.memory_format)
        target = self.labels[indices]
        teacher_logits = self.teacher(batch, indices, views) if self.teacher else None
        with self.numerics.autocast(self.device):
            logits = self.student(batch)
        loss = objective_loss(
            self.spec.objective, logits, target, teacher_logits, self.spec.temperature, self.spec.weights, self.generator
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters])
        good = (loss < self.limit) & norm.isfinite()  # a NaN loss compares false
        self.number += 1
        if self.device.type == "cpu":
            if not good:
                what = f"the loss is {loss.item():g}, the gradient's norm {norm.item():g}"
                raise Diverged(int(self.number), what)
        else:
            self.bad.copy_(torch.where(good | (self.bad > 0), self.bad, self.number))
        self.optimizer.step()
        self.loss += loss.detach() * len(indices)
        self.wrong += (logits.detach().argmax(1) != target).sum()

    def recorded(self, indices, views):
        """`compute` as a CUDA graph that reads its batch from where the returned function writes it.

        Warming up takes real steps; whatever they changed is put back, and the random generators too.
        """
        given = indices.clone(), views.clone()
        cuda = self.device.type == "cuda"
        with self.undone():
            if cuda:
                side = torch.cuda.Stream(self.device)
                side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side) if cuda else contextlib.nullcontext():
                for _ in range(3):
                    self.compute(*given)
            if cuda:
                torch.cuda.current_stream(self.device).wait_stream(side)
        replay = lambda: self.compute(*given)  # noqa: E731
        if cuda:
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            self.optimizer.zero_grad(set_to_none=True)
            with self.undone(), torch.cuda.graph(graph):
                self.compute(*given)
            replay = graph.replay

        def function(indices, views):
            for static, new in zip(given, (indices, views)):
                static.copy_(new)
            replay()

        return function

    @contextlib.contextmanager
    def undone(self):
        """Weights, buffers, momentum, sums and random generators are afterwards as they were."""
        momenta = lambda: [state["momentum_buffer"] for state in self.optimizer.state.values() if state]  # noqa: E731
        sums = [self.loss, self.wrong, self.number, self.bad]
        kept = [(tensor, tensor.clone()) for tensor in [*self.student.state_dict().values(), *momenta(), *sums]]
        had_momentum, state = bool(momenta()), self.generator.get_state()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield
        self.generator.set_state(state)
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
            if not had_momentum:  # the first step's momentum is its gradient, which is that of a momentum of zero
                for buffer in momenta():
                    buffer.zero_()


def train_epoch(take_step, epoch, tick=lambda n: None):
    """One pass over the training images by a `Step`; returns (mean loss in nats, training error in %).

    tick: called with the number of images after each step.
    Raises Diverged(step, what): on a CPU at once, on CUDA, where looking at each step would stall the device, at the end
    of the epoch, whose weights are then never saved.
    """
    spec, device, count = take_step.spec, take_step.device, len(take_step.labels)
    order, views = (drawn.to(device) for drawn in epoch_draw(spec, epoch, count, take_step.images.count))
    if isinstance(take_step.teacher, teachers.Remembered):
        take_step.teacher.fill(order, views)
    take_step.begin(epoch)
    with seeded(stream(spec, "dropout", epoch), device):
        for indices, view in zip(order.split(spec.recipe.batch), views.split(spec.recipe.batch)):
            take_step(indices, view)
            tick(len(indices))
    if take_step.bad > 0:
        raise Diverged(int(take_step.bad), "loss or gradient not finite, or exploded")
    return take_step.loss.item() / count, 100 * take_step.wrong.item() / count


@torch.no_grad()
def evaluate(network, dataset, numerics=machine.REFERENCE):
    """(probabilities float16 [n, classes] on the CPU, error in %, negative log-likelihood in nats) on the test images.

    The error is that of the rounded probabilities, so whoever reads them later finds the same number.
    """
    network.eval()
    images = data.Augmented(dataset.test, dataset.mean, dataset.std, pad=0, flip=False, border="reflect")
    labels, logits = dataset.test.labels, []
    for indices in torch.arange(len(labels), device=labels.device).split(500):
        with numerics.autocast(labels.device):
            logits.append(network(images.plain(indices).contiguous(memory_format=numerics.memory_format)).float())
    logits = torch.cat(logits)
    probabilities = logits.softmax(1).half()
    error = 100 * (probabilities.argmax(1) != labels).double().mean().item()
    return probabilities.cpu(), error, torch.nn.functional.cross_entropy(logits, labels).item()


def new_network(spec, dataset):
    """A freshly initialised network for spec, on the CPU: a new initialisation for each seed and generation."""
    with seeded(stream(spec, "init"), torch.device("cpu")):
        return models.build(
            spec.network, len(dataset.classes), dataset.channels, dataset.image_size, dropout=spec.recipe.dropout
        )


def network_of(run, dataset=None):
    """The trained network of a run, in eval mode on the CPU. Raises ValueError if the weights do not fit it."""
    network = new_network(run.spec, dataset or data.load(run.spec.dataset))
    weights, expected = run.weights(), network.state_dict()
    for name in sorted(set(weights) | set(expected)):
        found, wanted = (getattr(side.get(name), "shape", "nothing") for side in (weights, expected))
        if found != wanted:
            raise ValueError(f"weights of run {run.run_id} do not fit {run.spec.network}: {name} has {found}, "
                             f"expected {wanted}")  # fmt: skip
    network.load_state_dict(weights)
    return network.eval()


def load_teacher(spec, store, dataset):
    """The teacher's network, after its files were checked and it was found to fit. Errors name both sides."""
    try:
        run = store.load(spec.teacher)
    except RunMissing as missing:
        raise RunMissing(f"{spec.name} (run {spec.run_id}) cannot learn from {spec.teacher}: {missing}") from None
    if run.spec.dataset_digest != spec.dataset_digest:
        learned, wanted = data.facts(run.spec.dataset), data.facts(spec.dataset)
        raise ValueError(
            f"teacher {run.run_id} learned {run.spec.dataset} ({run.spec.dataset_digest[:8]}, {learned}), its student "
            f"{spec.run_id} would learn {spec.dataset} ({spec.dataset_digest[:8]}, {wanted}); both need the same "
            "classes, image size and images"
        )
    return network_of(run, dataset)


def student_classes(student):
    *_, last = (module for module in student.modules() if isinstance(module, torch.nn.Linear))
    return last.out_features


def stream(spec, purpose, epoch=0):
    """A seed for one purpose that depends on (seed, generation, epoch) alone."""
    text = f"{spec.seed}/{spec.generation}/{epoch}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def epoch_draw(spec, epoch, count, views):
    """(order, views) of an epoch: a permutation of the images and a view for each, int64 [count] on the CPU."""
    generator = torch.Generator().manual_seed(stream(spec, "epoch", epoch))
    return torch.randperm(count, generator=generator), torch.randint(views, (count,), generator=generator)


@contextlib.contextmanager
def thread_count(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pack(student, optimizer):
    """Everything the next epoch needs, as named tensors: the state dict and the momentum buffers."""
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in student.state_dict().items()}
    for name, parameter in student.named_parameters():
        if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"momentum.{name}"] = momentum.contiguous()
    return tensors


def unpack(tensors, student, optimizer):
    """The inverse of `pack`. Raises RunDamaged if a part is missing, unknown or of another shape."""
    own = student.state_dict()
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    expected = {f"network.{name}": tensor.shape for name, tensor in own.items()}
    if optimizer.defaults["momentum"]:
        expected |= {f"momentum.{name}": parameter.shape for name, parameter in trained.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(set(expected) | set(found)):
        if found.get(name) != expected.get(name):
            raise RunDamaged(f"the resume point is refused: {name} has shape {found.get(name, 'none')}, expected "
                             f"{expected.get(name, 'none')}; `banlib runs rm` starts the run over")  # fmt: skip
    student.load_state_dict({name: tensors[f"network.{name}"] for name in own})
    if optimizer.defaults["momentum"]:
        for name, parameter in trained.items():
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = momentum


def numerics_as_before(environments, device, how):
    """The `machine.Numerics` of the last start, if the run goes on where it was; None if they are to be chosen anew."""
    if not environments or "layout" not in environments[-1]:
        return None
    last = environments[-1]
    now = machine.describe(device, machine.REFERENCE)
    if any(last[name] != now[name] for name in ("hardware", "device", "threads", "torch")):
        return None
    compiled = last["compiled"] if how.compile == "auto" else how.compile
    return machine.Numerics(last["precision"], last["layout"], compiled)


def warn_if_moved(spec, before, now):
    same = ("hardware", "device", "precision", "layout", "threads", "torch", "teacher", "compiled", "padded")
    moved = [name for name in same if name in before and before[name] != now.get(name)]
    if moved:
        changes = ", ".join(f"{name} {before[name]} -> {now.get(name)}" for name in moved)
        warnings.warn(f"run {spec.run_id} goes on under other conditions ({changes}): it will not be bit-identical "
                      "to one that never stopped; both are recorded")  # fmt: skip


@contextlib.contextmanager
def failures_told(spec, device):
    """What the device or the compiler could not do, as a sentence that names the run and the way out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free = teachers.free_memory(device) / 1e9
        raise RuntimeError(f"{spec.network} {spec.name} (run {spec.run_id}) needs more memory than {device} has "
                           f"({free:.1f} GB free now): take a device with more, or a smaller network") from error  # fmt: skip
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        first = str(error).strip().splitlines()[0]
        raise RuntimeError(f"{spec.network} cannot be compiled here ({first}): train it without compile") from error
