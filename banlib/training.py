"""One generation, from a spec to a trained network.

`fit` is the walk: claim the run, resume or start, train epoch by epoch, commit. `train_epoch` is the hot loop: no disk,
no worker processes. Order, views and dropout of an epoch are functions of (seed, generation, epoch), not of history,
so a resumed run sees what an undisturbed one would have seen.
"""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from banlib import data, models, teachers
from banlib.objectives import OBJECTIVES
from banlib.recipe import BadInput, named
from banlib.store import Diverged, RunDamaged, RunMissing, Store

EXPLODED = 50  # a loss this many times that of guessing is counted as divergence, long before it overflows


def fit(spec, store=None, device="auto", threads=None, progress=True, teacher_memory="auto", compile=False):
    """Train what spec describes, or load it if the store has it; returns the `store.Run`.

    device: "auto", "cpu", "cuda", "cuda:1"; threads: CPU threads (None leaves torch's choice).
    teacher_memory: "auto", "online" or "remembered", see `teachers.choose`; compile: the student by torch.compile, which
    costs minutes before the first step. Both are how, not what: they move last bits, are recorded, and are not hashed.
    Interrupted at any moment, the same call goes on after the last finished epoch.
    Raises Diverged (NaN, infinite or exploding loss), ValueError (teacher and student do not fit), RunDamaged.
    """
    store = store or Store()
    device = choose_device(device)
    named("teacher_memory", teacher_memory, teachers.MEMORIES)
    dataset = data.load(spec.dataset)
    if dataset.digest != spec.dataset_digest:
        raise ValueError(
            f"{spec.dataset} here has digest {dataset.digest[:16]}…, the spec expects {spec.dataset_digest[:16]}…"
        )
    if store.status(spec.run_id) == "finished":
        store.tidy(spec.run_id)
        return store.load(spec.run_id)
    teacher = load_teacher(spec, store, dataset) if spec.teacher else None
    if spec.share_ends:
        models.share_ends(new_network(spec, dataset), teacher)  # refuses what does not fit before anything is created
    with store.claim(spec) as work, thread_count(threads):
        if not work.finished.exists():
            if sentence := work.diverged():
                raise Diverged(f"{sentence}; `banlib runs rm {spec.run_id}` forgets it")
            train(spec, work, teacher, dataset, device, progress, teacher_memory, compile)
    return store.load(spec.run_id)


def train(spec, work, teacher, dataset, device, progress, teacher_memory="auto", compile=False):
    recipe, started = spec.recipe, time.perf_counter()
    precision, autocast, layout = numerics(recipe.precision, device)

    student = new_network(spec, dataset)
    if spec.share_ends:
        models.share_ends(student, teacher)
    student.to(device, memory_format=layout)
    optimizer = torch.optim.SGD(  # foreach: the same bits as a loop over parameters, in 3/4 of its time; fused has others
        student.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov,
        foreach=True,
    )  # fmt: skip
    rows, environments = [], []
    environment = describe(device, precision) | {"compiled": compile}
    if resumed := work.resume():
        _, tensors, state = resumed
        unpack(tensors, student, optimizer)
        rows, environments = state["rows"], state["environments"]
    environments.append(environment)
    work.log(rows, fresh=True)

    dataset = dataset.to(device)
    images = data.Augmented(dataset.train, dataset.mean, dataset.std, recipe.pad, recipe.flip, recipe.border)
    labels = dataset.train.labels
    if teacher is not None:
        key = (spec.teacher, images.views, precision, device, torch.get_num_threads())
        teacher = teachers.choose(
            teacher.to(device, memory_format=layout), autocast, images, len(labels), len(dataset.classes),
            recipe.epochs, teacher_memory, layout, key,
        )  # fmt: skip
        environment["teacher"] = teachers.kind(teacher)
    if resumed:
        warn_if_moved(spec, environments[-2], environment)
    if compile:
        student.compile(dynamic=False)
    test = lambda: evaluate(student, dataset, autocast, layout)  # noqa: E731

    count, seen, probabilities = len(labels), {}, None
    bar = tqdm(
        total=recipe.epochs * count, initial=len(rows) * count, unit="img", unit_scale=True, disable=not progress,
        desc=f"{spec.network} {spec.name} seed {spec.seed} on {device}", mininterval=0.5 if sys.stderr.isatty() else 10,
        file=sys.stderr, dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        for epoch in range(len(rows) + 1, recipe.epochs + 1):
            begun = time.perf_counter()
            try:
                loss, error = train_epoch(
                    spec, epoch, student, optimizer, images, labels, teacher, autocast, layout, bar.update
                )
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


def train_epoch(spec, epoch, student, optimizer, images, labels, teacher, autocast, layout, tick=lambda n: None):
    """One pass over the training images; returns (mean loss in nats, training error in %).

    teacher: see `teachers`, or None. tick: called with the number of images after each step.
    Raises Diverged(step, what) before the optimizer step that a bad loss or gradient would have spoilt; on CUDA, where
    looking at each step would stall the device, at the end of the epoch, whose weights are then never saved.
    """
    recipe, device = spec.recipe, labels.device
    objective = OBJECTIVES[spec.objective]
    limit = EXPLODED * (1 + spec.temperature**2) * math.log(student_classes(student))
    order, views = (drawn.to(device) for drawn in epoch_draw(spec, epoch, len(labels), images.count))
    if isinstance(teacher, teachers.Remembered):
        teacher.fill(order, views)
    generator = torch.Generator(device).manual_seed(stream(spec, "objective", epoch))
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    student.train()
    loss_sum = torch.zeros((), device=device)
    wrong = torch.zeros((), device=device, dtype=torch.int64)
    first_bad = torch.full((), -1, device=device)

    with seeded(stream(spec, "dropout", epoch), device):
        batches = zip(order.split(recipe.batch), views.split(recipe.batch))
        for step, (indices, view) in enumerate(batches, 1):
            batch = images.batch(indices, view).contiguous(memory_format=layout)
            target = labels[indices]
            teacher_logits = teacher(batch, indices, view) if teacher else None
            with autocast():
                logits = student(batch)
            loss = objective(logits, target, teacher_logits, spec.temperature, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            good = (loss < limit) & norm.isfinite()  # a NaN loss compares false
            if device.type == "cpu":
                if not good:
                    raise Diverged(step, f"the loss is {loss.item():g}, the gradient's norm {norm.item():g}")
            else:
                first_bad = torch.where(good | (first_bad > 0), first_bad, step)
            optimizer.step()
            loss_sum += loss.detach() * len(indices)
            wrong += (logits.detach().argmax(1) != target).sum()
            tick(len(indices))
    if first_bad > 0:
        raise Diverged(int(first_bad), "loss or gradient not finite, or exploded")
    return loss_sum.item() / len(labels), 100 * wrong.item() / len(labels)


@torch.no_grad()
def evaluate(network, dataset, autocast=contextlib.nullcontext, layout=torch.contiguous_format):
    """(probabilities float16 [n, classes] on the CPU, error in %, negative log-likelihood in nats) on the test images.

    The error is that of the rounded probabilities, so whoever reads them later finds the same number.
    """
    network.eval()
    images = data.Augmented(dataset.test, dataset.mean, dataset.std, pad=0, flip=False, border="reflect")
    labels, logits = dataset.test.labels, []
    for indices in torch.arange(len(labels), device=labels.device).split(500):
        with autocast():
            logits.append(network(images.plain(indices).contiguous(memory_format=layout)).float())
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
def seeded(seed, device):
    """The global generators set to seed inside, and as they were after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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


def choose_device(text="auto"):
    """A torch.device from "auto" (CUDA, then CPU), "cpu", "cuda" or "cuda:N"; ValueError lists what was found."""
    found = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if text == "auto":
        return torch.device(found[1] if len(found) > 1 else "cpu")
    wanted = "cuda:0" if text == "cuda" else str(text)
    if wanted not in found:
        raise BadInput(f"device {str(text)!r} is not here; found: {', '.join(found)} (or use 'auto')")
    return torch.device(wanted)


def numerics(precision, device):
    """("fp32" or "bf16", an autocast context factory, the memory format) in which a device trains fastest.

    A recipe that says "fp32" gets the plain reference on a CPU; only "auto" lets the channels lie last in fp32 too.
    """
    chosen = choose_precision(precision, device)
    plain = precision == "fp32" and device.type == "cpu"
    autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bf16")  # noqa: E731
    return chosen, autocast, torch.contiguous_format if plain else torch.channels_last


def choose_precision(precision, device):
    """ "fp32" or "bf16": for "auto", bf16 autocast where the device computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    # Emulated bf16 is slower than fp32; only processors with one of these instruction sets gain by it.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def describe(device, precision):
    """Where a run is trained: recorded with it, and compared when it is resumed."""
    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "banlib": importlib.metadata.version("banlib"),
        "commit": commit(),
    }


def processor():
    """The CPU's name and core count, as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def commit():
    """The checkout's commit, with "+" if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        git = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", here, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout
        changed = git("status", "--porcelain", "--", here)
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def warn_if_moved(spec, before, now):
    same = ("hardware", "device", "precision", "threads", "torch", "teacher", "compiled")
    moved = [name for name in same if name in before and before[name] != now.get(name)]
    if moved:
        changes = ", ".join(f"{name} {before[name]} -> {now.get(name)}" for name in moved)
        warnings.warn(f"run {spec.run_id} goes on under other conditions ({changes}): it will not be bit-identical "
                      "to one that never stopped; both are recorded")  # fmt: skip
