"""The machine that trains: which device, how it is named, and in which numbers and memory layout a network trains
fastest on it.

None of this is part of a run id. It moves last bits, so all of it is recorded with the run, and a resumed run goes on
with what is recorded.
"""

import contextlib
import copy
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock

from banlib import data, models
from banlib.recipe import BadInput
from banlib.store import write_atomically

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
CLEARLY = 0.8  # another way than the first needs at most this share of its time: noise of a trial must not change bits
LONG = 3600  # seconds of training left from which compiling on a CPU is tried; it takes minutes, and gains a tenth
PAYS = 0.95  # it is kept where a step takes at most this share of the time


class Numerics(NamedTuple):
    """How a network computes: precision "fp32" or "bf16" (autocast; weights and loss stay float32), a layout of LAYOUTS,
    by torch.compile or not, with channels padded to multiples of eight (`models.pad_channels`) or not."""

    precision: str
    layout: str = "channels last"
    compiled: bool = False
    padded: bool = False

    @property
    def memory_format(self):
        return LAYOUTS[self.layout]

    def autocast(self, device):
        return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, network, device):
        """The network, ready to be trained or asked on the device in these numerics, but not compiled. In place."""
        if self.padded:
            models.pad_channels(network)
        return network.to(device, memory_format=self.memory_format)

    def __str__(self):
        extra = [name for name in ("compiled", "padded") if getattr(self, name)]
        return ", ".join([self.precision, self.layout, *extra])


REFERENCE = Numerics("fp32", "contiguous")


def choose_device(text="auto"):
    """A torch.device from "auto" (CUDA, then CPU), "cpu", "cuda" or "cuda:N"; ValueError lists what was found."""
    found = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if text == "auto":
        return torch.device(found[1] if len(found) > 1 else "cpu")
    wanted = "cuda:0" if text == "cuda" else str(text)
    if wanted not in found:
        raise BadInput(f"device {str(text)!r} is not here; found: {', '.join(found)} (or use 'auto')")
    return torch.device(wanted)


# Memory that is freed and wanted again

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory(environ=os.environ):
    """Let the C library keep the memory of freed tensors for the next step; returns whether it does now.

    glibc maps fresh pages for every large tensor and gives them back, which the kernel must clear each time: a step of
    DenseNetBC-22-12 at batch 128 then takes 1.3 to 1.5 times as long (`benchmarks/allocator.py`), in larger pages up to
    1.6. It costs what the step's peak holds, until the process ends. An allocator that the user chose is left alone, and
    so is any other C library.
    """
    if platform.libc_ver()[0] != "glibc" or any(environ.get(name) for name in ("LD_PRELOAD", "GLIBC_TUNABLES")) or any(
            name.startswith("MALLOC_") for name in environ):  # fmt: skip
        return False
    environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first tensor
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


# In which numbers


def candidates(precision, device):
    """The `Numerics` worth trying for a recipe's precision on a device, the likely best first.

    Precision "auto" is bf16 where the device computes in it: emulated, it is slower than fp32. CUDA gets one, by rule.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
        return [Numerics({"auto": "bf16" if has_bf16 else "fp32"}.get(precision, precision))]
    if precision == "bf16":
        return [Numerics("bf16"), Numerics("bf16", "contiguous")]
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    faster = [Numerics("bf16")] if precision == "auto" and has_bf16 else []
    return [*faster, Numerics("fp32"), REFERENCE]


def choose(network, shape, batch, precision, device, steps=0, compile="auto", trial=True):
    """(the `Numerics` in which the network trains fastest here, {way: seconds of a step} of those that were tried).

    network: on the CPU, left as it is; shape: (channels, height, width) of an image; steps: how many are to be trained.
    compile: True, False, or "auto": tried on a CPU where the steps to come would take more than LONG without.
    trial: whether steps may be timed; without, the first of `candidates` is taken, and "auto" does not compile.
    A trial is kept in <home>/trials, so that a machine chooses once for each network, batch and number of threads.
    """
    ways, seconds = candidates(precision, device), {}
    if not trial:
        return ways[0]._replace(compiled=compile is True), {}
    if len(ways) > 1:
        seconds |= trial_of(network, shape, batch, device, ways)
    best = fastest(ways, seconds)
    if compile == "auto" and steps * seconds.get(str(best), 0) > LONG:
        ways = [best, best._replace(compiled=True)]
        with contextlib.suppress(Exception):  # no compiler here, or one that fails on this network
            seconds |= trial_of(network, shape, batch, device, ways)
        best = fastest(ways, seconds, PAYS)
    return best._replace(compiled=best.compiled or compile is True), seconds


def fastest(ways, seconds, share=CLEARLY):
    """The way with the shortest step; the first unless another takes at most this share of its time."""
    best = min(ways, key=lambda way: seconds.get(str(way), torch.inf))
    return best if seconds.get(str(best), 0) <= share * seconds.get(str(ways[0]), torch.inf) else ways[0]


def trial_of(network, shape, batch, device, ways):
    """{way: seconds of a step}, by `race` or as kept from an earlier trial of the same on this machine. One process at a
    time. Where nothing can be written, nothing is kept."""
    weights = [list(parameter.shape) for parameter in network.parameters()]
    key = [processor(), torch.get_num_threads(), torch.__version__, str(device), list(shape), batch, weights,
           [str(way) for way in ways]]  # fmt: skip
    path = data.home() / "trials" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(path.read_bytes())
            return {str(way): float(found[str(way)]) for way in ways}
        seconds = dict(zip(map(str, ways), race(network, shape, batch, device, ways)))
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps(seconds).encode())
        return seconds


def race(network, shape, batch, device, ways):
    """Seconds of a training step in each way: the median of five or more, in turns; of fewer if ten seconds are over."""
    steps = [step_in(network, shape, batch, device, way) for way in ways]
    for step in steps:
        step()  # the first also allocates, and compiles
    begun, rounds, spent = time.perf_counter(), [], 0
    while not rounds or spent < 0.5 or (len(rounds) < 5 and spent < 10):
        rounds.append([step() for step in steps])
        spent = time.perf_counter() - begun
    return [statistics.median(each) for each in zip(*rounds)]


def step_in(network, shape, batch, device, way):
    """A function that trains a copy of the network on made-up images for a step and returns its seconds."""
    with seeded(0, device):
        images = torch.randn(batch, *shape).to(device).contiguous(memory_format=way.memory_format)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    network = way.place(copy.deepcopy(network), device).train()
    if way.compiled:
        network.compile(dynamic=False)

    def step():
        with seeded(0, device):  # for dropout
            begun = time.perf_counter()
            with way.autocast(device):
                logits = network(images)
            F.cross_entropy(logits, labels).backward()
            network.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - begun

    return step


@contextlib.contextmanager
def seeded(seed, device):
    """The global generators set to seed inside, and as they were after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def deterministic(wanted=True):
    """Inside, the same computation on the same machine has the same bits, and an operation that cannot promise it raises.

    CPU computations have them anyhow, for a given number of threads. On CUDA it costs speed.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to promise it
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # a safeguard against reading it, which costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.utils.deterministic.fill_uninitialized_memory = filled


# How much memory


def step_memory(network, shape, batch, precision):
    """Bytes that an eager training step holds at its peak, about: what autograd keeps from the forward pass for the
    backward pass, counted on the meta device; weights, gradients and momentum; and a few gradients under way.

    network: of the meta device or another, left as it is; shape: (channels, height, width).
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = copy.deepcopy(network).to("meta", dtype).train()
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # holds it, so that no other gets its number
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(2, *shape, dtype=dtype)).sum()
    sizes = sorted((storage.nbytes() * batch // 2 for storage in kept.values()), reverse=True)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return sum(sizes) + 3 * max(sizes, default=0) + (3 * 4 + (2 if precision == "bf16" else 0)) * weights


# What it is called


def describe(device, numerics):
    """Where and how a run is trained: recorded with it, and compared when it is resumed."""
    return {
        "hardware": hardware(device),
        "device": device.type,
        "precision": numerics.precision,
        "layout": numerics.layout,
        "compiled": numerics.compiled,
        "padded": numerics.padded,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "banlib": importlib.metadata.version("banlib"),
        "commit": commit(),
    }


def hardware(device):
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


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
