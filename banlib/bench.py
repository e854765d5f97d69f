"""How fast training and distilling are, beside the loop that people write: variants take turns on one network, batch and
data.

`loop` compares them, `scaling` follows our cost along depth, growth, batch and images. What else runs on a machine
slows all variants of a round alike, so it is ratios within a round that count. Both keep finished rounds in
<home>/benchmarks, and a call that was stopped goes on there.
"""

import contextlib
import dataclasses
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from banlib import data, machine, models, teachers, training
from banlib.recipe import BadInput, Recipe, RunSpec, check_network, integer, named
from banlib.store import dump, write_atomically

RESULTS = Path(__file__).parents[1] / "results/benchmarks"  # the measurements that ship with the book
ROUNDS = 5
LIMIT = 420  # seconds after which no round is started: a call ends within ten minutes
FEWEST_STEPS, MOST_STEPS = 2, 32  # of a turn
CHAIN, EPOCHS = (1, 2, 3), 12  # students and generations that are raised whole, and for how long
RECIPE = Recipe(lr=0.001)  # the paper's recipe; a small rate keeps the loss of an untaught network in bounds


def tell(text):
    print(text, file=sys.stderr)


def loop(network="DenseNetBC-40-12", device="auto", batch=128, say=tell, **how):
    """The usual loop and ours, plain and distilling: a dict that JSON can hold.

    ratio_to_usual_loop: how many times as fast as the usual loop each of ours is, the median over rounds, and
    ratio_range: the lowest and highest round. "plain" is compared with the usual loop without teacher, the others with
    the one with it. "distill_remembered" is a teacher's first student over the recipe's epochs: `teachers.share` of its
    answers are asked for, in large batches, at the cost that the variant "fill" has; "students" has a later student,
    whose teacher has answered everything, too. seconds: of each turn of `images` images, by variant, a list of rounds.
    how: of our loop: precision, compile, cuda_graph, pad_channels; precision "fp32" is what a processor without bf16 takes.
    Raises ValueError for a network, device, batch or precision that cannot be.
    """
    case = Case(network, device, batch, **how)
    batch, kept = case.batch, Kept("loop", case, say)
    build = {
        "usual": lambda: usual(case, taught=False),
        "usual_teacher": lambda: usual(case, taught=True),
        "plain": lambda: ours(case, None),
        "distill_online": lambda: ours(case, "online"),
        "distill_later": lambda: ours(case, "answered"),
        "fill": lambda: fill(case),
    }
    if case.device.type == "cuda":
        build["usual_autocast"] = lambda: usual(case, taught=False, autocast=case.autocast)
        build["usual_teacher_autocast"] = lambda: usual(case, taught=True, autocast=case.autocast)
    turns, first, step = {}, {}, {}
    for name, make in build.items():
        begun = time.perf_counter()
        turns[name] = make()
        timed(turns[name], batch, case.device)
        first[name] = time.perf_counter() - begun
        step[name] = timed(turns[name], batch, case.device)[0]
        say(f"{name}: first step after {first[name]:.1f} s, the second took {step[name]:.2f} s")
    kept.begin(steps=max(FEWEST_STEPS, min(MOST_STEPS, int(LIMIT / 1.2 / ROUNDS / sum(step.values())))))
    kept.measure({name: (turn, kept.state["steps"] * batch) for name, turn in turns.items()}, ROUNDS, case.device)

    seconds, peaks = kept.state["seconds"], kept.state["peaks"]
    share = teachers.share(RECIPE.epochs, case.images.count)
    seconds["distill_remembered"] = [
        later + share * asked for later, asked in zip(seconds["distill_later"], seconds["fill"])
    ]
    images = kept.state["steps"] * batch
    against = {"plain": "usual", "distill_online": "usual_teacher", "distill_remembered": "usual_teacher",
               "distill_later": "usual_teacher"}  # fmt: skip
    ratios = {mine: ratio(seconds[theirs], seconds[mine]) for mine, theirs in against.items()}
    result = case.told() | {
        "steps": kept.state["steps"],
        "images": images,
        "rounds": len(seconds["usual"]),
        "ratio_to_usual_loop": {name: ratios[name]["median"] for name in list(against)[:3]},
        "ratio_range": {name: ratios[name]["range"] for name in list(against)[:3]},
        "students": {"first": ratios["distill_remembered"], "later": ratios["distill_later"], "share_asked": share},
        "distill_over_plain": {name: ratio(seconds[name], seconds["plain"]) for name in list(against)[1:]},
        "images_per_second": {name: round(images / statistics.median(each), 1) for name, each in seconds.items()},
        "seconds_to_first_step": {name: round(each, 2) for name, each in first.items()},
        "peak_memory_mib": {name: max(each) and round(max(each) / 2**20) for name, each in peaks.items()},
        "seconds": seconds,
    }
    if case.device.type == "cuda":
        result["ratio_to_usual_loop_autocast"] = {
            mine: ratio(seconds[f"{theirs}_autocast"], seconds[mine])["median"] for mine, theirs in against.items()
        }
    result["ceilings"] = ceilings(case, result["images_per_second"]["plain"])
    kept.done()
    return result


def scaling(network="DenseNetBC-22-12", device="auto", batch=128, say=tell, **how):
    """What our steps cost as one thing grows at a time: {"points": [{axis, value, network, batch, images,
    plain, later, fill (seconds for each image)}, ...]}, medians over rounds.

    axis: depth and growth of the DenseNetBC network, batch, and images of an epoch.
    chain: whole trainings of `epochs` epochs with `views` views: seconds for each image and epoch on labels, "plain"; of
    each of the "students" that one teacher raises in turn; and of each of the "generations". how: as of `loop`.
    """
    _, family, args = models.parse(check_network(network))
    if family != "DenseNetBC":
        raise BadInput(f"scaling follows depth and growth of a DenseNetBC, got {network!r}")
    depth, growth = args["depth"], args["growth"]
    base = Case(network, device, batch, 1, **how)
    batch, kept = base.batch, Kept("scaling", base, say)
    how = {"numerics": base.numerics, "cuda_graph": base.cuda_graph, "pad_channels": base.numerics.padded}
    axes = {
        "depth": [(value, f"DenseNetBC-{value}-{growth}", batch, 2) for value in (depth - 6, depth, depth + 12, depth + 24)],
        "growth": [(value, f"DenseNetBC-{depth}-{value}", batch, 2) for value in (growth // 2, growth, 2 * growth)],
        "batch": [(value, network, value, 2) for value in (batch // 4, batch // 2, batch, 2 * batch) if value],
        "images": [(value * batch, network, batch, value) for value in (1, 2, 4, 8)],
    }
    points, turns = [], {}
    for axis, own in axes.items():
        for value, name, size, steps in own:
            case = Case(name, device, size, steps, **how)
            variants = {"plain": ours(case, None), "later": ours(case, "answered"), "fill": fill(case)}
            images = steps * size
            points.append({"axis": axis, "value": value, "network": name, "batch": size, "images": images})
            turns |= {f"{axis}/{value}/{kind}": (turn, images) for kind, turn in variants.items()}
            for turn in variants.values():
                timed(turn, size, case.device)
    few = Case(network, device, batch, 2, recipe=RECIPE.model_copy(update={"pad": 1}), **how)
    chain = raising(few, EPOCHS)
    for turn in chain.values():
        timed(turn, batch * EPOCHS, base.device)
    turns |= {name: (turn, 2 * batch * EPOCHS) for name, turn in chain.items()}
    kept.begin()
    kept.measure(turns, 3, base.device)
    for point in points:
        for kind in ("plain", "later", "fill"):
            each = kept.state["seconds"][f"{point['axis']}/{point['value']}/{kind}"]
            point[kind] = statistics.median(each) / point["images"]
    each = lambda name: statistics.median(kept.state["seconds"][name]) / (2 * batch * EPOCHS)  # noqa: E731
    raised = {"epochs": EPOCHS, "views": few.images.count, "plain": each("chain/plain")}
    raised |= {kind: [each(f"{kind}/{n}") for n in CHAIN] for kind in ("students", "generations")}
    rounds = len(kept.state["seconds"]["chain/plain"])
    kept.done()
    views = base.images.count
    shares = {str(epochs): teachers.share(epochs, views) for epochs in (1, 10, 30, 60, 100, 200)}
    told = {"rounds": rounds, "points": points, "chain": raised, "views": views, "share_asked": shares}
    return base.told() | told


# The usual loop


class Photos(torch.utils.data.Dataset):
    """A split as torchvision's datasets give it: PIL images through a transform, and labels."""

    def __init__(self, split, transform):
        self.images, self.labels = split.images.permute(0, 2, 3, 1).numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Shuffled:
    """A sampler: the first `count` images in a new random order each time, without starting the workers anew."""

    count = 0

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(torch.randperm(self.count).tolist())


def usual_epoch(loader, student, optimizer, teacher, device, autocast=contextlib.nullcontext):
    """An epoch as it is usually written. Returns the mean loss in nats. teacher: a network in eval mode, or None."""
    student.train()
    total, count = torch.zeros((), device=device), 0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
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
    """A turn of the usual loop: float32, contiguous, eager, worker processes, torchvision's transforms."""
    from torchvision import transforms

    transform = transforms.Compose([
        transforms.RandomCrop(32, padding=RECIPE.pad, padding_mode=RECIPE.border),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(case.dataset.mean.tolist(), case.dataset.std.tolist()),
    ])  # fmt: skip
    student, teacher = case.network().to(case.device), case.network().to(case.device).eval() if taught else None
    optimizer, order = sgd(student), Shuffled()
    loader = torch.utils.data.DataLoader(
        Photos(case.dataset.train, transform), case.batch, sampler=order, persistent_workers=True,
        num_workers=min(8, os.cpu_count()), pin_memory=case.device.type == "cuda",
    )  # fmt: skip

    def turn(count):
        order.count = count
        usual_epoch(loader, student, optimizer, teacher, case.device, autocast)

    return turn


# Ours


def ours(case, teacher):
    """A turn of `training.train_epoch`. teacher: None, "online" or "answered" (remembered, and nothing left to ask)."""
    asked = teacher and teachers.online(case.placed(), case.autocast)
    if teacher == "answered":
        asked = memory(case)
        asked.known.fill_(True), asked.table.zero_()
    step = step_of(case, asked)

    def turn(count):
        step.labels = case.labels[:count]
        training.train_epoch(step, 1)

    return turn


def step_of(case, teacher):
    student = case.placed()
    optimizer = sgd(student, foreach=True)
    if case.numerics.compiled:
        student.compile(dynamic=False)
    return training.Step(case.spec(teacher is not None), student, optimizer, case.images, case.labels, teacher,
                         case.numerics, case.cuda_graph)  # fmt: skip


def fill(case):
    """A turn of asking the teacher about pairs it has not answered yet."""
    teacher = memory(case)

    def turn(count):
        teacher.known.zero_()
        teacher.fill(*(each.to(case.device) for each in training.epoch_draw(case.spec(), 1, count, case.images.count)))

    return turn


def memory(case):
    return teachers.Remembered(case.placed(), case.autocast, case.images, len(case.labels), 100, torch.float16,
                               case.numerics.memory_format)  # fmt: skip


def raising(case, epochs):
    """Turns of whole small trainings: on labels, then students of one teacher who remembers, one after the other, then
    generations, each of which has a new teacher. {name: turn}; each turn is `epochs` epochs."""

    def turn_of(teacher, forgets):
        step = step_of(case, teacher)

        def turn(count):
            if forgets:
                teacher.known.zero_()
            step.labels = case.labels[: count // epochs]
            for epoch in range(1, epochs + 1):
                training.train_epoch(step, epoch)

        return turn

    one = memory(case)
    return {
        "chain/plain": turn_of(None, False),
        **{f"students/{n}": turn_of(one, n == 1) for n in CHAIN},
        **{f"generations/{n}": turn_of(memory(case), True) for n in CHAIN},
    }


def sgd(network, **options):
    return torch.optim.SGD(network.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=RECIPE.weight_decay,
                           nesterov=RECIPE.nesterov, **options)  # fmt: skip


class Case:
    """What every variant shares: network, device, batch, and images, CIFAR-100's if it is here and made ones if not."""

    def __init__(self, network, device="auto", batch=128, steps=MOST_STEPS, precision="auto", compile=False,
                 cuda_graph=False, pad_channels=False, numerics=None, recipe=RECIPE):  # fmt: skip
        self.name, self.device = check_network(network), machine.choose_device(device)
        named("precision", precision, ("auto", "bf16", "fp32"))
        self.recipe, self.cuda_graph = recipe, cuda_graph
        self.batch = integer(batch)
        if self.batch is None or not 1 <= self.batch <= 4096:
            raise BadInput(f"batch must be an integer from 1 to 4096, got {batch!r}")
        self.data, self.dataset = images_at_hand(steps * self.batch)
        if numerics is None:
            numerics, _ = machine.choose(self.network(), (3, 32, 32), self.batch, precision, self.device, 0, compile)
        self.numerics = numerics._replace(padded=pad_channels)
        here = self.dataset.to(self.device)
        self.labels = here.train.labels
        self.images = data.Augmented(here.train, here.mean, here.std, recipe.pad, recipe.flip, recipe.border)

    def network(self):
        with machine.seeded(0, torch.device("cpu")):
            return models.build(self.name)

    def placed(self):
        """The network on the device, in our numerics."""
        return self.numerics.place(self.network(), self.device)

    def autocast(self):
        return self.numerics.autocast(self.device)

    def spec(self, taught=True):
        own = {"objective": "label+teacher", "teacher": "0" * 16} if taught else {}
        recipe = self.recipe.model_copy(update={"batch": self.batch})
        return RunSpec(network=self.name, dataset=self.dataset.name, dataset_digest=self.dataset.digest, recipe=recipe,
                       seed=0, generation=int(taught), **own)  # fmt: skip

    def told(self):
        told = {"network": self.name, "batch": self.batch, "data": self.data, "numerics": str(self.numerics),
                "cuda_graph": self.cuda_graph}  # fmt: skip
        return told | machine.describe(self.device, self.numerics)


def images_at_hand(count):
    """(what they are, a `data.Dataset` with so many training images): CIFAR-100 where it is found, else made up."""
    if data.locate("cifar100") or (data.home() / "decoded/cifar100.safetensors").exists():
        found = data.load("cifar100")
        first = data.Split(found.train.images[:count], found.train.labels[:count])
        return "CIFAR-100", dataclasses.replace(found, train=first)
    made = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=made)
    split = data.Split(images, torch.randint(100, (count,), generator=made))
    classes = tuple(map(str, range(100)))
    even = torch.full((3,), 0.5)
    return "synthetic, of CIFAR-100's shape", data.Dataset("cifar100", "0" * 64, classes, split, split, even, even / 2)


# Measuring


class Kept:
    """The rounds of a measurement, on disk from the first: the same call goes on with them."""

    def __init__(self, kind, case, say):
        self.key = {"kind": kind, **case.told(), "rounds": ROUNDS}
        self.path = data.home() / "benchmarks" / f"{name_of(kind, self.key)}.json"
        self.say, self.begun = say, time.perf_counter()
        self.state = {"key": self.key, "seconds": {}, "peaks": {}}
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(self.path.read_bytes())
            if found["key"] == self.key:
                self.state = found
                say(f"going on after round {len(next(iter(found['seconds'].values())))}")

    def begin(self, **chosen):
        self.state = chosen | self.state  # what an earlier call chose stays

    def measure(self, turns, rounds, device):
        """turns: {name: (turn, images)}. Each round runs every variant once; the first always, others in time."""
        seconds, peaks, took = self.state["seconds"], self.state["peaks"], 0
        done = min((len(seconds.get(name, [])) for name in turns), default=0)
        while done < rounds and (not done or time.perf_counter() - self.begun + took < LIMIT):
            begun, measured = time.perf_counter(), {}
            for name, (turn, images) in turns.items():
                measured[name] = timed(turn, images, device)
            for name, (spent, peak) in measured.items():
                seconds.setdefault(name, []).append(spent)
                peaks.setdefault(name, []).append(peak)
            done, took = done + 1, time.perf_counter() - begun
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, dump(self.state))
            self.say(f"round {done} of {rounds} in {took:.0f} s")

    def done(self):
        self.path.unlink(missing_ok=True)


def timed(turn, count, device):
    """(seconds of a turn of so many images, peak bytes in it: allocated on CUDA, of the process on Linux, else 0)."""
    status = Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    begun = time.perf_counter()
    turn(count)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent, peak = time.perf_counter() - begun, 0
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    elif status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] or ["VmHWM: 0 kB"]
        peak = 1024 * int(line.split()[1])
    return spent, peak


def ratio(theirs, mine):
    """How many times theirs the seconds of mine go into, round by round: median and range."""
    each = sorted(a / b for a, b in zip(theirs, mine))
    return {"median": round(statistics.median(each), 3), "range": [round(each[0], 3), round(each[-1], 3)]}


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, each as if it found nothing in a cache."""

    bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
        return out


def traffic(name, precision, batch=2):
    """Bytes that an eager forward and backward pass of the network moves for each 32x32 image, weights included."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        network = models.build(name).to("meta", dtype)
        with Traffic() as counted:
            network(torch.empty(batch, 3, 32, 32, dtype=dtype)).sum().backward()
    return counted.bytes / batch


def ceilings(case, images_per_second):
    """What the device can do at most, measured now, and the share of it that the plain step's arithmetic and memory
    traffic (`traffic`, an estimate) come to. TFLOP/s of a large matrix product in the step's precision, GB/s of a copy."""
    cuda, dtype = case.device.type == "cuda", torch.bfloat16 if case.numerics.precision == "bf16" else torch.float32
    size = 8192 if cuda else 2048
    a = torch.ones(size, size, dtype=dtype, device=case.device)
    source = torch.zeros(2**30 if cuda else 2**27, dtype=torch.uint8, device=case.device)
    target = torch.zeros_like(source)
    multiply = min(timed(lambda count: a @ a, 1, case.device)[0] for _ in range(10))
    copy = min(timed(lambda count: target.copy_(source), 1, case.device)[0] for _ in range(10))
    flops, bandwidth = 2 * size**3 / multiply, 2 * source.nbytes / copy
    arithmetic = 6 * models.forward_macs(case.name) * images_per_second  # forward, and twice that backward; 2 per MAC
    return {
        "matmul_tflops": round(flops / 1e12, 3),
        "copy_gb_per_second": round(bandwidth / 1e9, 2),
        "share_of_matmul": round(arithmetic / flops, 3),
        "share_of_copy": round(traffic(case.name, case.numerics.precision) * images_per_second / bandwidth, 3),
    }


def name_of(kind, told):
    """The name of a measurement's file: what was measured, where, and how."""
    words = [told["hardware"], *([f"{told['threads']}-threads"] if told["device"] == "cpu" else []), told["numerics"],
             *(["cuda graph"] if told["cuda_graph"] else [])]  # fmt: skip
    how = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    return f"{kind}-{told['network']}-{told['batch']}-{how}"


def record(result, kind):
    """Write a result to results/benchmarks/, where chapter 6 finds it. Returns the path."""
    path = RESULTS / f"{name_of(kind, result)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump(result))
    return path


def recorded(kind, folder=RESULTS):
    """The measurements of a kind, "loop" or "scaling", that ship with the book, by file name."""
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*.json"))]
