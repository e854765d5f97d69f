"""The machine that trains: its devices, numbers, memory and name.

None of this is part of a run id. It moves last bits, so it is recorded with the run.
"""

import contextlib
import copy
import ctypes
import importlib.metadata
import math
import os
import platform
import subprocess
import warnings
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from banlib.runs.recipe import BadInput

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
ROOT = Path("/")
# of a control group, v2 and v1: limit, usage, and what stands before its statistics' names
LIMITS = (
    ("memory.max", "memory.current", ""),
    ("memory.high", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
QUOTAS = (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
UNTOLD = (OSError, ValueError, KeyError, ImportError)  # where a system does not tell
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


class Numerics(NamedTuple):
    """How a network computes: "fp32", or "bf16" (autocast; weights and loss stay float32), and the
    layout of images in memory."""

    precision: str
    layout: str = "channels last"

    @property
    def memory_format(self):
        return LAYOUTS[self.layout]

    def autocast(self, device):
        # Without its cache, which would keep stale weights inside of somebody else's autocast.
        kind, wanted = torch.device(device).type, self.precision == "bf16"
        return torch.autocast(kind, torch.bfloat16, enabled=wanted, cache_enabled=False)

    def __str__(self):
        return f"{self.precision}, {self.layout}"


def numerics(precision, device):
    """`Numerics` by rule, so that bits don't depend on how busy the machine is.

    precision: "auto" is bf16 where the device computes in it; emulated, it is slower than fp32.
    Channels last is the faster layout nearly everywhere; `benchmarks/trial.py` tells where not.
    """
    if precision == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
        else:
            has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if has_bf16 else "fp32"
    return Numerics(precision)


def choose_device(text="auto"):
    """A torch.device from "auto" (the first CUDA device that works, else the CPU), "cpu", "cuda" or
    "cuda:N". BadInput says what is here, or why a device can't be used."""
    found = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if text == "auto":
        for name in found[1:]:
            if not (why := refusal(name)):
                return torch.device(name)
            instead = "training on the CPU" if name == found[-1] else "trying the next"
            warnings.warn(f"{name} can't be used ({why}); {instead}", stacklevel=2)
        return torch.device("cpu")
    wanted = "cuda:0" if text == "cuda" else str(text)
    if wanted.partition(":")[0] == "mps":
        raise BadInput(f"device {wanted!r} (Apple's GPUs) is not supported; take 'cpu'")
    if wanted not in found:
        devices = ", ".join(found)
        raise BadInput(f"device {str(text)!r} is not here; found: {devices} (or use 'auto')")
    if why := refusal(wanted):
        raise BadInput(f"device {wanted!r} can't be used ({why}); take 'cpu' or 'auto'")
    return torch.device(wanted)


@cache
def refusal(name):
    """Why a device cannot compute, or None: an old driver, a card that PyTorch has no code for."""
    if name == "cpu":
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            image = torch.ones(1, 1, 4, 4, device=name, requires_grad=True)
            sums = F.conv2d(image, torch.ones(1, 1, 3, 3, device=name)).view(1, 4)
            (sums @ sums.T).sum().backward()
            return None if image.grad.sum().item() == 648 else "it computes wrong numbers"
    except Exception as error:  # of the driver, of cuDNN, of a PyTorch without CUDA
        return str(error).strip().partition("\n")[0] or type(error).__name__


# Settings of the process


@contextlib.contextmanager
def held(read, write, value):
    """A setting of the process is `value` inside, written if it differs; then as it was before."""
    before = read()
    try:
        if before != value:
            write(value)
        yield
    finally:
        if read() != before:
            write(before)


@contextlib.contextmanager
def own_settings(kind, threads=None, deterministic=False):
    """Inside, what moves bits is set as for every run, whatever this process did before.

    kind: of device. deterministic: the same computation has the same bits, or raises; a CPU's have
    them anyhow, for a number of threads, and on CUDA it costs speed.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    backends, same = torch.backends, torch.are_deterministic_algorithms_enabled
    exact = (backends.mkldnn.matmul, backends.mkldnn.conv)
    exact += (backends.cuda.matmul, backends.cudnn.conv)
    attributes = [(place, "fp32_precision", "ieee") for place in exact]
    attributes += [(backends.cudnn, "benchmark", False)]
    attributes += [(torch.utils.deterministic, "fill_uninitialized_memory", False)]  # costs time
    contexts = [
        held(partial(getattr, place, name), partial(setattr, place, name), value)
        for place, name, value in attributes
    ]
    contexts += [
        held(same, torch.use_deterministic_algorithms, deterministic),  # which imports a compiler
        held(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        held(torch.get_num_threads, torch.set_num_threads, threads or torch.get_num_threads()),
        *(torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False)),
    ]
    if torch.get_default_device().type != "cpu":  # it costs time at each call, so only if
        contexts.append(torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextlib.contextmanager
def seeded(seed, device):
    """The global generators set to seed inside, and as they were after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)  # faster
        yield


def keep_freed_memory(environ=os.environ):
    """Let the C library keep the memory of freed tensors for the next step; whether it does now.

    glibc gives large tensors back at once, and the kernel clears their pages anew for each step,
    which `benchmarks/allocator.py` measures. It costs a step's peak, until the process ends. An
    allocator that the user chose is left alone.
    """
    chosen = any(environ.get(name) for name in ("LD_PRELOAD", "GLIBC_TUNABLES"))
    chosen = chosen or any(name.startswith("MALLOC_") for name in environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # larger pages; read at the first tensor
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


# Memory and cores, as the system or a container rations them


def free_memory(device, root=ROOT):
    """Bytes that can still be had on the device; infinity where nobody tells."""
    if device.type == "cuda":  # what torch holds is for whoever asks next
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + spare
    rooms = [math.inf]
    with contextlib.suppress(*UNTOLD):
        rooms.append(1024 * counted(root / "proc/meminfo")["MemAvailable:"])
    with contextlib.suppress(*UNTOLD):
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        if (limit := getrlimit(RLIMIT_AS)[0]) != RLIM_INFINITY:  # `ulimit -v`
            rooms.append(limit - 1024 * counted(root / "proc/self/status")["VmSize:"])
    for folder in control_groups("memory", root):
        for limit, usage, prefix in LIMITS:
            with contextlib.suppress(*UNTOLD):  # "max", or not there
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
                kinds, stat = ("active_file", "inactive_file"), counted(folder / "memory.stat")
                rooms.append(left + sum(stat.get(prefix + kind, 0) for kind in kinds))  # a cache
    return max(0, min(rooms))


def counted(path):
    """{name: number} of a file with lines such as "MemAvailable: 5 kB"."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def control_groups(controller, root=ROOT):
    """Folders of the control groups, v1 and v2, that this process is in."""
    folders = []
    with contextlib.suppress(*UNTOLD):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if not names or controller in names.split(","):
                base, inside = root / "sys/fs/cgroup" / (names and controller), Path(path[1:])
                folders += [base / part for part in (inside, *inside.parents)]
    return folders  # of which a container sees some


def cores(root=ROOT):
    """How many CPU cores this process may use, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for folder in control_groups("cpu", root):
        for names in QUOTAS:
            with contextlib.suppress(*UNTOLD):
                texts = [(folder / name).read_text() for name in names]
                quota, period = map(int, " ".join(texts).split())
                counts += [quota // period] if quota > 0 else []
    return max(1, min(counts))


def step_memory(network, shape, batch, precision):
    """Bytes that a training step holds at its peak, about.

    What autograd keeps for the backward pass, counted for two images; weights, gradients and
    momentum; a few gradients under way. shape: (channels, height, width). The network stays.
    """
    network, kept, part = copy.deepcopy(network).train(), {}, 2 if precision == "bf16" else 1
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # holds it, so that no other gets its number
        return tensor

    images = torch.zeros(2, *shape, device=next(network.parameters()).device)
    # dropout draws, so the generator is put back
    with torch.random.fork_rng([]), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(images).sum()
    sizes = [storage.nbytes() * batch // 2 // part for storage in kept.values()]
    weights = sum(parameter.numel() for parameter in network.parameters())
    each = 3 * 4 + (2 if precision == "bf16" else 0)
    return sum(sizes) + 3 * max(sizes, default=0) + each * weights


# Names


def describe(device, numerics):
    """Where and how a run is trained: recorded with it, and compared when it is resumed."""
    return {
        "hardware": hardware(device),
        "device": device.type,
        "precision": numerics.precision,
        "layout": numerics.layout,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "banlib": importlib.metadata.version("banlib"),
        "commit": commit(),
    }


def hardware(device):
    """The device's name; of a CPU with its number of cores, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(*UNTOLD):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def commit():
    """The checkout's commit, with "+" if banlib differs from it; "unknown" outside a checkout."""
    here = Path(__file__).parents[1]

    def git(*words):
        command = ["git", "-C", here, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # packages may lie in a checkout too
        changed = git("status", "--porcelain", "--", here)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
