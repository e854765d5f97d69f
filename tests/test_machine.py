"""The machine that trains: its devices, its numbers, what it has left, what it is called."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from banlib import models
from banlib.runs import datasets, fit, machine
from banlib.runs.machine import Numerics
from banlib.runs.recipe import BadInput
from banlib.views import Augmented
from conftest import recipe, tiny_spec

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
BF16, FP32, REFERENCE = Numerics("bf16"), Numerics("fp32"), Numerics("fp32", "contiguous")
MB = 2**20


# Numbers


@pytest.mark.parametrize("precision, avx512, amx, expected", [
    ("auto", False, True, "bf16"), ("auto", True, False, "bf16"), ("auto", False, False, "fp32"),
    ("fp32", True, True, "fp32"), ("bf16", False, False, "bf16"),
])  # fmt: skip
def test_precision_is_fp32_unless_the_processor_computes_in_bf16(monkeypatch, precision, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert machine.numerics(precision, CPU) == Numerics(expected, "channels last")


@pytest.mark.parametrize("capability, expected", [((8, 0), BF16), ((7, 5), FP32)])
def test_cuda_has_bf16_from_its_eighth_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.numerics("auto", CUDA) == expected


def test_numerics_are_what_a_network_computes_in():
    network = models.build("DenseNetBC-10-4")
    for numerics in (FP32, BF16, REFERENCE):
        network.to(memory_format=numerics.memory_format)
        with numerics.autocast(CPU):
            out = network(torch.zeros(2, 3, 32, 32).contiguous(memory_format=numerics.memory_format))
        assert out.dtype == (torch.bfloat16 if numerics is BF16 else torch.float32)
        assert network.stem.weight.dtype == torch.float32
        assert network.stem.weight.is_contiguous(memory_format=numerics.memory_format)


@pytest.mark.parametrize("numerics, logits, gradient", [(FP32, 1e-5, 1e-4), (BF16, 0.05, 0.4)])
def test_a_fast_step_is_the_reference_step(numerics, logits, gradient):
    """Same batch and weights: logits, loss and all gradients but for rounding, as parts of the reference's size.

    float32 differs by the order of sums alone. bf16 rounds each layer to 2**-8, and a rounding that turns a sign in front
    of a ReLU switches a gradient off or on: a fifth of the gradient's length is noise, whose direction is its own.
    """
    digits, found = datasets.load("digits"), []
    for each in (REFERENCE, numerics):
        images = Augmented(digits.train, digits.mean, digits.std, 1, False, "reflect", each.memory_format)
        network = fit.new_network(tiny_spec(network="DenseNetBC-16-6"), digits).to(memory_format=each.memory_format)
        with each.autocast(CPU):
            out = network(images.batch(torch.arange(50), torch.arange(50) % 9)).float()
        torch.nn.functional.cross_entropy(out, digits.train.labels[:50]).backward()
        found.append((out.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])))
    for expected, got, bound in zip(*found, (logits, gradient), strict=True):
        assert (got - expected).norm() <= bound * expected.norm()
    assert torch.cosine_similarity(found[0][1], found[1][1], 0) > 0.95 and not torch.equal(found[0][1], found[1][1])


# Devices


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUs of which some cannot be used: gpus({"cuda:0": why or None, ...})."""

    def found(refusals):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(refusals))
        monkeypatch.setattr(machine, "refusal", refusals.get)

    return found


def test_auto_takes_the_first_device_that_works(gpus):
    gpus({"cuda:0": None, "cuda:1": None})
    assert machine.choose_device() == CUDA == machine.choose_device("cuda")
    assert machine.choose_device("cuda:1") == torch.device("cuda:1")
    gpus({"cuda:0": "out of memory", "cuda:1": None})
    with pytest.warns(UserWarning, match=r"^cuda:0 can't be used \(out of memory\); trying the next$"):
        assert machine.choose_device() == torch.device("cuda:1")
    gpus({"cuda:0": "no kernel image is available"})
    with pytest.warns(UserWarning, match=r"^cuda:0 can't be used \(no kernel .*\); training on the CPU$"):
        assert machine.choose_device() == CPU
    gpus({})
    with warnings.catch_warnings(action="error"):
        assert machine.choose_device() == CPU


def test_a_device_that_was_asked_for_and_cannot_be_used_is_refused_in_a_sentence(gpus):
    gpus({"cuda:0": "the driver is too old"})
    with pytest.raises(BadInput, match=r"^device 'cuda:0' can't be used \(the driver is too old\); take 'cpu' or 'auto'$"):
        machine.choose_device("cuda")
    with pytest.raises(BadInput, match=r"^device 'mps' \(Apple's GPUs\) is not supported; take 'cpu'$"):
        machine.choose_device("mps")


@pytest.mark.parametrize("error, why", [
    (RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might"),
     "CUDA error: no kernel image is available for execution on the device"),
    (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    (OSError(), "OSError"),
])  # fmt: skip
def test_auto_tries_a_tiny_computation(monkeypatch, error, why):
    """Capability (6, 0), say, and a PyTorch with code from sm_75 up: counted as a device, not to be used."""

    def ones(*args, **options):
        raise error

    machine.refusal.cache_clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.warns(UserWarning) as said:
        assert machine.choose_device("auto") == CPU
    assert str(said[0].message) == f"cuda:0 can't be used ({why}); training on the CPU"
    machine.refusal.cache_clear()


def test_a_tiny_computation_is_right_on_the_cpu(monkeypatch):
    """The sum it is compared with, by the computation itself."""
    machine.refusal.cache_clear()
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device, **more: ones(*shape, **more))
    assert machine.refusal("cuda:0") is None
    machine.refusal.cache_clear()


# Settings


@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_float32_is_float32_whatever_the_process_has_set(before):
    places = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    usual = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = before
        with machine.own_settings("cuda"):
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert [place.fp32_precision for place in places] == [before, before]
    finally:
        for place, value in zip(places, usual, strict=True):
            place.fp32_precision = value


def test_settings_are_for_the_inside_alone():
    asked = torch.are_deterministic_algorithms_enabled
    with pytest.raises(KeyError), machine.own_settings("cpu", deterministic=True):
        assert asked() and not torch.backends.cudnn.benchmark
        raise KeyError
    assert not asked()
    with machine.own_settings("cpu", 2):
        assert not asked() and torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_training_is_deterministic_inside_an_epoch_too(store, monkeypatch):
    epochs, seen = fit.loop.train_epoch, []
    monkeypatch.setattr(fit.loop, "train_epoch", lambda *args, **more: (
        seen.append(torch.are_deterministic_algorithms_enabled()), epochs(*args, **more))[1])  # fmt: skip
    run = fit.fit(tiny_spec(), store, "cpu", 1, False, deterministic=True)
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()
    assert run.environments[0]["deterministic"] is True


@pytest.mark.parametrize("variable", ["LD_PRELOAD", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_chose_is_left_alone(variable):
    assert machine.keep_freed_memory({variable: "1"}) is False


# Memory and cores


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}
V2 = {"proc/self/cgroup": "0::/user.slice/job\n"}
V1 = {"proc/self/cgroup": "9:name=systemd:/x\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"}
STAT = "anon 5\nfile 7\nactive_file 1048576\ninactive_file 2097152\ntotal_active_file 3145728\ntotal_inactive_file 0\n"


@pytest.mark.parametrize("files, expected", [
    ({}, math.inf),  # a system that tells nothing
    (MEMINFO, 8192 * MB),
    ({"proc/meminfo": "MemAvailable: 8388608 kB\n", "proc/self/cgroup": "garbage"}, 8192 * MB),
    # v2: the group's own limit, its parent's, the container's root; cached files (3 MB) count as free
    (MEMINFO | V2 | {"sys/fs/cgroup/user.slice/job/memory.max": f"{100 * MB}\n",
                     "sys/fs/cgroup/user.slice/job/memory.current": f"{60 * MB}\n",
                     "sys/fs/cgroup/user.slice/job/memory.stat": STAT}, 43 * MB),
    (MEMINFO | V2 | {"sys/fs/cgroup/user.slice/job/memory.max": "max\n",
                     "sys/fs/cgroup/user.slice/job/memory.current": f"{60 * MB}\n",
                     "sys/fs/cgroup/user.slice/job/memory.stat": STAT,
                     "sys/fs/cgroup/user.slice/memory.max": f"{200 * MB}\n",
                     "sys/fs/cgroup/user.slice/memory.current": f"{90 * MB}\n",
                     "sys/fs/cgroup/user.slice/memory.stat": "anon 1\n"}, 110 * MB),
    (MEMINFO | V2 | {"sys/fs/cgroup/memory.high": f"{100 * MB}\n", "sys/fs/cgroup/memory.current": "0\n",
                     "sys/fs/cgroup/memory.stat": ""}, 100 * MB),
    (MEMINFO | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2000 * MB}\n",
                "sys/fs/cgroup/memory.current": f"{2500 * MB}\n", "sys/fs/cgroup/memory.stat": ""}, 0),
    # v1: at its full path, or at the root, which is all that a container sees
    (MEMINFO | V1 | {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{100 * MB}\n",
                     "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": f"{60 * MB}\n",
                     "sys/fs/cgroup/memory/docker/abc/memory.stat": STAT}, 43 * MB),
    (MEMINFO | V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2000 * MB}\n",
                     "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1000 * MB}\n",
                     "sys/fs/cgroup/memory/memory.stat": STAT}, 1003 * MB),
    (MEMINFO | V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                     "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{1000 * MB}\n",
                     "sys/fs/cgroup/memory/memory.stat": STAT}, 8192 * MB),
], ids=range(10))  # fmt: skip
def test_free_memory_is_what_the_system_and_its_control_groups_leave(tmp_path, files, expected):
    assert machine.free_memory(CPU, system(tmp_path, files)) == expected


def test_free_memory_is_within_what_this_machine_has():
    assert 2**26 < machine.free_memory(CPU) < 2**46


def test_a_limit_of_address_space_is_a_limit():
    """Of `ulimit -v`, in a process of its own."""
    code = """if True:
        import resource, torch
        from banlib.runs import machine
        used = 1024 * machine.counted(machine.ROOT / "proc/self/status")["VmSize:"]
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        print(machine.free_memory(torch.device("cpu")))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**27 < int(done.stdout) <= 2**28


def test_memory_that_torch_holds_for_the_next_is_free_too(monkeypatch):
    """On CUDA: 2 GB that nobody has, and 3 of the 4 that an earlier training left with torch's allocator."""
    for name, answer in (("mem_get_info", (2e9, 16e9)), ("memory_reserved", 4e9), ("memory_allocated", 1e9)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert machine.free_memory(CUDA) == 5e9


@pytest.mark.parametrize("files, expected", [
    ({}, 8), (V2 | {"sys/fs/cgroup/user.slice/cpu.max": "250000 100000\n"}, 2),
    (V2 | {"sys/fs/cgroup/user.slice/cpu.max": "max 100000\n"}, 8), (V2 | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3),
    (V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
], ids=range(6))  # fmt: skip
def test_cores_are_those_that_the_container_may_use(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(8)))
    assert machine.cores(system(tmp_path, files)) == expected


def test_memory_of_a_step_is_what_autograd_keeps():
    """Two linear layers by hand: the input of each (float32, batch 8) is kept, and three of the largest are under way."""
    linear = (torch.nn.Linear(12, 5, bias=False), torch.nn.Linear(5, 4, bias=False))
    network = torch.nn.Sequential(torch.nn.Flatten(), *linear)
    kept = 8 * 4 * (12 + 5)
    weights = 12 * 5 + 5 * 4
    assert machine.step_memory(network, (3, 2, 2), 8, "fp32") == kept + 3 * 8 * 4 * 12 + 3 * 4 * weights
    in_half = 8 * 2 * (12 + 5) + 3 * 8 * 2 * 12 + (3 * 4 + 2) * weights
    assert machine.step_memory(network, (3, 2, 2), 8, "bf16") == in_half


# Names


def test_the_record_says_where_and_how(store):
    run = fit.fit(tiny_spec(recipe=recipe(epochs=1)), store, "cpu", 1, False)
    [environment] = run.environments
    assert set(environment) == {"hardware", "device", "precision", "layout", "threads", "torch", "python", "banlib",
                                "commit", "deterministic", "accelerate", "recomputed"}  # fmt: skip
    assert environment["hardware"].endswith(" cores") and environment["torch"] == torch.__version__


def test_a_copy_among_somebodys_packages_has_no_commit(tmp_path, monkeypatch):
    """A virtual environment inside a checkout of another project, whose commit says nothing of ours."""
    copy = tmp_path / "site-packages" / "banlib" / "runs" / "machine.py"
    copy.parent.mkdir(parents=True)
    copy.write_text("")
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "c"],
    ):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(machine, "__file__", str(copy))
    assert machine.commit() == "unknown"
    monkeypatch.undo()
    if (Path(machine.__file__).parents[2] / ".git").exists():
        assert len(machine.commit().rstrip("+")) == 12
