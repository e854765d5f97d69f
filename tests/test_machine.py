"""The choice of numbers and layout: by rule, by trial, as before; and what the machine is called."""

import contextlib
import json
import warnings

import pytest
import torch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec

from banlib import data, machine, models, teachers, training
from banlib.machine import REFERENCE, Numerics
from banlib.store import Store

CPU = torch.device("cpu")
BF16, FP32 = Numerics("bf16"), Numerics("fp32")


def has_bf16(monkeypatch, answer):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: answer)


@pytest.fixture
def speeds(monkeypatch):
    """Trials find these seconds, by way; and a list of the ways of each trial that was held."""
    seconds, held = {}, []
    monkeypatch.setattr(machine, "race", lambda *args: (held.append(args[-1]), [seconds[way] for way in args[-1]])[1])
    return seconds, held


def choose(precision="fp32", **options):
    return machine.choose(models.build("DenseNetBC-10-4", 10, 1, 8), (1, 8, 8), 50, precision, CPU, **options)


# What is tried


@pytest.mark.parametrize("precision, has, expected", [
    ("auto", True, [BF16, FP32, REFERENCE]), ("auto", False, [FP32, REFERENCE]),
    ("fp32", True, [FP32, REFERENCE]), ("bf16", False, [BF16, Numerics("bf16", "contiguous")]),
])  # fmt: skip
def test_precision_is_fp32_unless_the_processor_computes_in_bf16(monkeypatch, precision, has, expected):
    has_bf16(monkeypatch, has)
    assert machine.candidates(precision, CPU) == expected


@pytest.mark.parametrize("capability, expected", [((8, 0), BF16), ((7, 5), FP32)])
def test_cuda_is_told_by_rule(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.candidates("auto", torch.device("cuda:0")) == [expected]


def test_numerics_are_what_a_network_computes_in():
    network = models.build("DenseNetBC-10-4")
    for numerics in (FP32, BF16, REFERENCE):
        placed = numerics.place(network, CPU)
        with numerics.autocast(CPU):
            out = placed(torch.zeros(2, 3, 32, 32).contiguous(memory_format=numerics.memory_format))
        assert out.dtype == (torch.bfloat16 if numerics is BF16 else torch.float32)
        assert placed.stem.weight.dtype == torch.float32
        assert placed.stem.weight.is_contiguous(memory_format=numerics.memory_format)


# The trial


@pytest.mark.parametrize("contiguous, expected", [(0.75, REFERENCE), (0.85, FP32), (2.0, FP32)])
def test_the_fastest_is_taken_if_it_is_clearly_faster(speeds, contiguous, expected):
    speeds[0].update({FP32: 1.0, REFERENCE: contiguous})
    numerics, tried = choose()
    assert numerics == expected and tried == {"fp32, channels last": 1.0, "fp32, contiguous": contiguous}


def test_a_machine_tries_once_for_each_network_batch_and_number_of_threads(speeds):
    """So that the same command trains the same bits, and seeds can be compared."""
    speeds[0].update({FP32: 1.0, REFERENCE: 0.5})
    first = choose()
    speeds[0].update({FP32: 1.0, REFERENCE: 2.0})
    assert choose() == first and len(speeds[1]) == 1
    torch.set_num_threads(2)
    assert choose()[0] == FP32 and len(speeds[1]) == 2
    torch.set_num_threads(1)
    other = models.build("DenseNetBC-10-5", 10, 1, 8)
    assert machine.choose(other, (1, 8, 8), 50, "fp32", CPU)[0] == FP32 and len(speeds[1]) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"fp32, channels last": "soon"}', b"\xff"])
def test_a_damaged_trial_is_held_again(speeds, content):
    speeds[0].update({FP32: 1.0, REFERENCE: 0.5})
    choose()
    [path] = (data.home() / "trials").glob("*.json")
    path.write_bytes(content)
    assert choose()[0] == REFERENCE and len(speeds[1]) == 2
    assert json.loads(path.read_text()) == {"fp32, channels last": 1.0, "fp32, contiguous": 0.5}


def test_where_nothing_can_be_written_a_trial_is_held_all_the_same(speeds, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path / "file"))
    speeds[0].update({FP32: 1.0, REFERENCE: 0.5})
    assert choose()[0] == REFERENCE == choose()[0] and len(speeds[1]) == 2


def test_a_trial_times_real_steps_and_leaves_network_and_generators_alone():
    network = models.build("WideResNet-10-1", 10, 1, 8, dropout=0.5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    seconds = machine.race(network, (1, 8, 8), 50, CPU, [FP32, REFERENCE, BF16])
    assert len(seconds) == 3 and all(0 < each < 10 for each in seconds)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state()) and network.stem.weight.is_contiguous()
    assert all(parameter.grad is None for parameter in network.parameters())


# Compiling


@pytest.mark.parametrize("steps, compiled, expected", [
    (3600, 0.5, False),  # an hour is left at a second a step: it may not pay
    (3601, 0.5, True), (3601, 0.96, False),
])  # fmt: skip
def test_compiling_is_tried_where_hours_are_left(speeds, steps, compiled, expected):
    speeds[0].update({FP32: 1.0, REFERENCE: 2.0, FP32._replace(compiled=True): compiled})
    numerics, tried = choose(steps=steps)
    assert numerics == FP32._replace(compiled=expected)
    assert ("fp32, channels last, compiled" in tried) == (steps == 3601)
    assert choose(steps=steps) == (numerics, tried) and len(speeds[1]) == 1 + (steps == 3601)


@pytest.mark.parametrize("wanted", [True, False])
def test_compiling_is_as_it_was_asked_for(speeds, wanted):
    speeds[0].update({FP32: 1.0, REFERENCE: 2.0})
    assert choose(steps=10**6, compile=wanted)[0].compiled is wanted and len(speeds[1]) == 1


def test_a_compiler_that_fails_is_not_needed(speeds):
    speeds[0].update({FP32: 1.0, REFERENCE: 2.0})  # none for the compiled way: a KeyError stands for a missing compiler
    assert choose(steps=10**6)[0] == FP32


def test_a_compiler_that_was_asked_for_and_fails_is_told_in_a_sentence(store, monkeypatch):
    def broken(*args):
        raise OSError("no compiler here\nand more")

    really = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: really(function, backend=broken, **options))
    with pytest.raises(RuntimeError, match=r"^DenseNetBC-10-4 cannot be compiled here \(.*\): train it without compile$"):
        training.fit(tiny_spec(recipe=recipe(epochs=1)), store, "cpu", progress=False, compile=True)
    assert store.status(tiny_spec(recipe=recipe(epochs=1)).run_id) != "finished"


# What a run does with the choice


@pytest.mark.parametrize("way", ["fp32, channels last", "fp32, contiguous"])
def test_a_resumed_run_goes_on_in_its_numerics_whatever_a_new_trial_would_find(tmp_path, speeds, way):
    slow = {"fp32, channels last": REFERENCE, "fp32, contiguous": FP32}[way]
    speeds[0].update({FP32: 1.0, REFERENCE: 1.0, slow: 2.0})
    straight, stopped = Store(tmp_path / "straight"), Store(tmp_path / "stopped")
    expected = training.fit(tiny_spec(), straight, "cpu", threads=1, progress=False)
    [environment] = expected.environments
    assert f"{environment['precision']}, {environment['layout']}" == way
    assert environment["trial"][str(slow)] == 2.0
    with interrupted_in(3):
        training.fit(tiny_spec(), stopped, "cpu", 1, False)
    for path in (data.home() / "trials").iterdir():
        path.unlink()
    speeds[0].update({FP32: 2.0, REFERENCE: 2.0, slow: 1.0})
    with warnings.catch_warnings(action="error"):
        run = training.fit(tiny_spec(), stopped, "cpu", threads=1, progress=False)
    assert outcome(run) == outcome(expected) and len(run.environments) == 2 and len(speeds[1]) == 1


def test_a_run_that_changes_its_numerics_is_warned_of(store, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with interrupted_in(3):
        training.fit(tiny_spec(), store, "cpu", 1, False, compile=False)
    with pytest.warns(UserWarning, match="goes on under other conditions .compiled False -> True"):
        training.fit(tiny_spec(), store, "cpu", threads=1, progress=False, compile=True)


@pytest.mark.parametrize("numerics, logits, gradient", [
    (FP32, 1e-5, 1e-4), (FP32._replace(padded=True), 1e-5, 1e-4), (BF16, 0.05, 0.4), (BF16._replace(padded=True), 0.05, 0.4),
])  # fmt: skip
def test_a_fast_step_is_the_reference_step(numerics, logits, gradient):
    """Same batch, weights and teacher: logits, loss and all gradients but for rounding, as parts of the reference's size.

    float32 differs by the order of sums alone. bf16 rounds each layer to 2**-8, and a rounding that turns a sign in front
    of a ReLU switches a gradient off or on: a fifth of the gradient's length is noise, whose direction is its own.
    """
    digits = data.load("digits")
    images = data.Augmented(digits.train, digits.mean, digits.std, 1, False, "reflect")
    found = {}
    for numerics in (REFERENCE, numerics):
        spec = tiny_spec(1, "0" * 16, network="DenseNetBC-16-6", recipe=recipe(lr=1e-9))
        student = numerics.place(training.new_network(spec, digits), CPU)
        asked = teachers.online(training.new_network(tiny_spec(seed=3), digits), contextlib.nullcontext)
        optimizer = torch.optim.SGD(student.parameters(), 1e-9, foreach=True)
        step, seen = training.Step(spec, student, optimizer, images, digits.train.labels, asked, numerics), []
        student.register_forward_hook(lambda module, inputs, out: seen.append(out.detach().float()))
        step.begin(1)
        step(torch.arange(50), torch.arange(50) % 9)
        grads = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        found[numerics] = seen[0], step.loss, grads
    for expected, got, bound in zip(*found.values(), (logits, logits, gradient)):
        assert (got - expected).norm() <= bound * expected.norm()
    assert torch.cosine_similarity(found[REFERENCE][2], grads, 0) > 0.95 and not torch.equal(found[REFERENCE][2], grads)


# Determinism


def test_a_deterministic_run_holds_no_trial_and_has_the_same_bits(tmp_path, speeds):
    outcomes = []
    for number in (1, 2):
        run = training.fit(tiny_spec(), Store(tmp_path / str(number)), "cpu", 1, False, deterministic=True)
        outcomes.append(outcome(run))
        assert run.environments[0]["deterministic"] and "trial" not in run.environments[0]
    assert outcomes[0] == outcomes[1] and speeds[1] == []


def test_determinism_is_for_the_inside_alone():
    asked = torch.are_deterministic_algorithms_enabled
    with pytest.raises(KeyError), machine.deterministic():
        assert asked() and not torch.backends.cudnn.benchmark
        raise KeyError
    assert not asked()
    with machine.deterministic(False):
        assert not asked()


def test_training_is_deterministic_inside_an_epoch_too(store, monkeypatch):
    steps, seen = training.train_epoch, []
    monkeypatch.setattr(training, "train_epoch", lambda *args: (
        seen.append(torch.are_deterministic_algorithms_enabled()), steps(*args))[1])  # fmt: skip
    training.fit(tiny_spec(), store, "cpu", 1, False, deterministic=True)
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()


# Recorded steps


@pytest.mark.parametrize("network, objective", [("DenseNetBC-10-4", "label+teacher"), ("WideResNet-10-1", "dkpp")])
def test_recorded_steps_train_the_same_bits(tmp_path, network, objective):
    """With warm-ups that are undone, a new record at each learning rate, dropout, and a last batch of another size.

    On a CPU the record is the function itself: what CUDA does with it waits for a GPU (tests/test_cuda.py).
    """
    teacher, own = tiny_spec(), recipe(epochs=4, batch=30, lr_milestones=(2,), dropout=0.3)
    outcomes = []
    for graph in (False, True):
        store = Store(tmp_path / str(graph))
        training.fit(teacher, store, "cpu", 1, False)
        spec = tiny_spec(1, teacher.run_id, network=network, recipe=own, objective=objective)
        run = training.fit(spec, store, "cpu", 1, False, cuda_graph=graph)
        assert run.environments[0]["cuda_graph"] is graph
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]


def test_a_step_is_recorded_once_for_each_learning_rate(store, monkeypatch):
    rates, really = [], training.Step.recorded
    monkeypatch.setattr(training.Step, "recorded", lambda self, *batch: (
        rates.append(self.optimizer.param_groups[0]["lr"]), really(self, *batch))[1])  # fmt: skip
    own = recipe(epochs=4, batch=30, lr=0.1, lr_milestones=(1, 3), lr_factor=0.2)
    training.fit(tiny_spec(recipe=own), store, "cpu", 1, False, cuda_graph=True)
    assert rates == pytest.approx([0.1, 0.02, 0.004])


# Memory


def test_memory_of_a_step_is_what_autograd_keeps():
    """Two linear layers by hand: the input of each (float32, batch 8) is kept, and three of the largest are under way."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False), torch.nn.Linear(5, 4, bias=False))
    kept = 8 * 4 * (12 + 5)
    weights = 12 * 5 + 5 * 4
    assert machine.step_memory(network, (3, 2, 2), 8, "fp32") == kept + 3 * 8 * 4 * 12 + 3 * 4 * weights
    in_half = 8 * 2 * (12 + 5) + 3 * 8 * 2 * 12 + (3 * 4 + 2) * weights
    assert machine.step_memory(network, (3, 2, 2), 8, "bf16") == in_half


@pytest.mark.parametrize("name", models.NAMES)
def test_each_network_of_the_tables_can_be_trained_on_a_gpu_of_16_gb(name):
    """In bf16, batch 128, by the count; the largest DenseNets only by computing again what their units would keep."""
    network = models.skeleton(name)
    needed = machine.step_memory(network, (3, 32, 32), 128, "bf16")
    if models.recompute(network):
        less = machine.step_memory(network, (3, 32, 32), 128, "bf16")
        assert less < 0.55 * needed
        needed = min(needed, less)
    assert 1e8 < needed < 15e9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_memory_is_short_dense_units_recompute_to_the_same_bits(tmp_path, monkeypatch, precision):
    """Weights, running statistics and their counts, through a resume."""
    spec = tiny_spec(recipe=recipe(precision=precision))
    expected = training.fit(spec, Store(tmp_path / "roomy"), "cpu", 1, False)
    monkeypatch.setattr(teachers, "free_memory", lambda device: 1e6)
    store, told = Store(tmp_path / "tight"), r"training takes .* dense units compute again what they would keep"
    with pytest.warns(UserWarning, match=told), interrupted_in(3):
        training.fit(spec, store, "cpu", 1, False)
    with pytest.warns(UserWarning, match=told):
        run = training.fit(spec, store, "cpu", 1, False)
    assert outcome(run) == outcome(expected)
    assert [env["recomputed"] for env in expected.environments + run.environments] == [False, True, True]


@pytest.mark.parametrize("network, told", [("DenseNetBC-10-4", 1), ("WideResNet-10-1", 0)])
def test_a_table_of_answers_makes_room_for_a_training_that_does_not_fit(store, monkeypatch, recwarn, network, told):
    """Whether or not the network has units that can recompute."""
    monkeypatch.setattr(teachers, "_kept", {"another teacher": "a table"})
    monkeypatch.setattr(teachers, "free_memory", lambda device: 1e3)
    training.fit(tiny_spec(network=network, recipe=recipe(epochs=1)), store, "cpu", 1, False)
    assert teachers._kept == {}
    assert sum("compute again" in str(warning.message) for warning in recwarn) == told


def test_units_that_recompute_keep_less():
    """By what autograd packs in a real forward pass, not by the count on the meta device."""
    kept = []
    for again in (False, True):
        network, sizes = models.build("DenseNetBC-22-12"), {}
        if again:
            assert models.recompute(network) == 9

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.train()(torch.zeros(2, 3, 32, 32)).sum()
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.55 * kept[0]


def test_a_device_without_the_memory_is_told_in_a_sentence(store, monkeypatch):
    def too_much(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(training, "train_epoch", too_much)
    with pytest.raises(RuntimeError, match=r"^DenseNetBC-10-4 Teacher \(run .*\) needs more memory than cpu has \(.* GB free "
                                           "now\\): take a device with more, or a smaller network$"):  # fmt: skip
        training.fit(tiny_spec(), store, "cpu", 1, False)
