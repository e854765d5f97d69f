"""What the teacher says, asked on every batch or remembered: the same answers, the same student, and room for them."""

import contextlib
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec

from banlib import data, teachers, training
from banlib.store import Store

LAST = torch.channels_last


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a teacher that has learned something, and the teacher's run."""
    store = Store(tmp_path_factory.mktemp("runs"))
    spec = tiny_spec(recipe=recipe(epochs=12, lr_milestones=(8, 10)))
    return store, training.fit(spec, store, "cpu", threads=1, progress=False)


@pytest.fixture(autouse=True)
def nothing_kept():
    teachers.forget()
    yield
    teachers.forget()


@pytest.fixture
def large(monkeypatch):
    """Tables are filled as they are needed, as CIFAR's are, and hold the digits' nine views."""
    monkeypatch.setattr(teachers, "SMALL", 0)
    monkeypatch.setattr(teachers, "ASKED_AT_ONCE", 64)


def augmented():
    digits = data.load("digits")
    return data.Augmented(digits.train, digits.mean, digits.std, pad=1, flip=False, border="reflect")


def choose(trained, epochs=10, memory="auto", **options):
    network = training.network_of(trained[1])
    return teachers.choose(network, contextlib.nullcontext, augmented(), 100, 10, epochs, memory, **options)


def draw(epoch=1):
    return training.epoch_draw(tiny_spec(), epoch, 100, 9)


# Which kind of teacher


@pytest.mark.parametrize(
    "memory, epochs, kind",
    [
        ("auto", 8, "online"),  # nine views: eight epochs ask fewer questions than there are
        ("auto", 9, "remembered in float32"),
        ("online", 9, "online"),
        ("remembered", 1, "remembered in float32"),
    ],
)
def test_a_small_table_is_filled_at_once_where_that_is_cheaper(trained, memory, epochs, kind):
    teacher = choose(trained, epochs, memory)
    assert teachers.kind(teacher) == kind
    assert kind == "online" or teacher.known.all()


@pytest.mark.parametrize(
    "memory, epochs, kind",
    [
        ("auto", 4, "online"),  # 9 (1 - (8/9)^4) / 4 = 0.85 of the online teacher's passes would be left
        ("auto", 7, "remembered"),  # 9 (1 - (8/9)^7) / 7 = 0.72
        ("online", 7, "online"),
        ("remembered", 1, "remembered"),
    ],
)
def test_a_large_table_is_filled_as_needed_where_that_saves_a_quarter(trained, large, memory, epochs, kind):
    teacher = choose(trained, epochs, memory)
    assert teachers.kind(teacher).startswith(kind)
    assert kind == "online" or not teacher.known.any()


def test_share_is_that_of_the_draws():
    """By simulation: 162 views, drawn anew each epoch, for many images."""
    seen, generator = torch.zeros(4000, 162, dtype=torch.bool), torch.Generator().manual_seed(0)
    for epoch in range(1, 201):
        seen[torch.arange(4000), torch.randint(162, (4000,), generator=generator)] = True
        if epoch in (1, 10, 200):
            assert teachers.share(epoch, 162) == pytest.approx(seen.sum().item() / 4000 / epoch, rel=0.01)


def test_a_table_that_free_memory_does_not_hold_is_not_made(trained, large, monkeypatch):
    """100 x 9 x (10 answers of two bytes or four, and a flag), beside what training takes; a tenth stays free."""
    size = 2 if "float16" in teachers.kind(choose(trained, memory="remembered")) else 4
    needed = 100 * 9 * (10 * size + 1) + 7000
    monkeypatch.setattr(teachers, "free_memory", lambda device: needed / 0.9 + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert teachers.kind(choose(trained, reserve=7000)).startswith("remembered")
    monkeypatch.setattr(teachers, "free_memory", lambda device: needed / 0.9 - 1)
    with pytest.warns(UserWarning, match="asked online: remembering its answers takes .* GB are free on cpu"):
        assert teachers.kind(choose(trained, reserve=7000)) == "online"


def test_the_table_of_another_teacher_is_freed_before_room_is_looked_for(trained, large, monkeypatch):
    choose(trained, key="one teacher")
    kept = []
    monkeypatch.setattr(teachers, "free_memory", lambda device: kept.append(dict(teachers._kept)) or 10**9)
    choose(trained, key="another")
    assert kept == [{}] and list(teachers._kept) == ["another"]


def test_free_memory_is_within_what_the_machine_has():
    assert 2**26 < teachers.free_memory(torch.device("cpu")) < 2**46


def test_memory_that_torch_holds_for_the_next_is_free_too(monkeypatch):
    """On CUDA: 2 GB that nobody has, and 3 of the 4 that an earlier training left with torch's allocator."""
    for name, answer in (("mem_get_info", (2e9, 16e9)), ("memory_reserved", 4e9), ("memory_allocated", 1e9)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    assert teachers.free_memory(torch.device("cuda:0")) == 5e9


def test_an_unknown_way_is_refused_before_training(trained, store):
    with pytest.raises(ValueError, match="unknown teacher_memory 'remember'; did you mean 'remembered'"):
        training.fit(tiny_spec(1, trained[1].run_id), store, "cpu", teacher_memory="remember")
    assert store.ids() == []


# What it says


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_remembered_equals_online_on_what_an_epoch_draws(trained, dtype, tolerance):
    """In the logits: sums in another order, and a rounding of 2**-11 of logits that are below ten."""
    images, network = augmented(), training.network_of(trained[1])
    online = teachers.online(network, contextlib.nullcontext)
    teacher = teachers.Remembered(network, contextlib.nullcontext, images, 100, 10, dtype)
    for epoch in (1, 2, 3):
        indices, views = draw(epoch)
        teacher.fill(indices, views)
        batch = images.batch(indices, views)
        said, expected = teacher(batch, indices, views), online(batch, indices, views)
        assert said.dtype == torch.float32 and (said - expected).abs().max() < tolerance


def test_nothing_is_asked_twice(trained, large):
    teacher, asked = choose(trained), []
    say = teacher.say
    teacher.say = lambda indices, views: (asked.append(len(indices)), say(indices, views))[1]
    indices, views = draw()
    teacher.fill(indices, views)
    assert asked == [64, 64] and teacher.known.sum() == 100  # two of each row of a batch but the last 28
    teacher.fill(indices[:50], views[:50])
    assert asked == [64, 64]


@pytest.mark.parametrize("precision, layout", [("fp32", torch.contiguous_format), ("fp32", LAST), ("bf16", LAST)])
def test_an_answer_has_the_same_bits_whatever_is_asked_beside_it(trained, precision, layout):
    """On a CPU: what lets a resumed run, and a later student, fill the table in another order."""
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")  # noqa: E731
    network = training.network_of(trained[1]).to(memory_format=layout)
    tables = []
    for order in (torch.arange(100), torch.arange(99, -1, -1), torch.arange(100) * 37 % 100):
        teacher = teachers.Remembered(network, autocast, augmented(), 100, 10, layout=layout)
        for part in order.split(70):  # filled up to a batch of another mixture
            teacher.fill(part, part % 9)
        tables.append(teacher.table[torch.arange(100), torch.arange(100) % 9])
    assert torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("scale, dtype", [(1, torch.float16), (1e6, torch.float32)])
def test_answers_are_halves_only_where_that_moves_no_probability(scale, dtype):
    logits = torch.randn(256, 10, generator=torch.Generator().manual_seed(0)) * scale
    network = SimpleNamespace(eval=lambda: SimpleNamespace(requires_grad_=lambda _: lambda batch: logits))
    teachers_type = teachers.table_type(network, contextlib.nullcontext, augmented(), 100, torch.contiguous_format)
    assert teachers_type == dtype


# The student


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_student_of_a_remembering_teacher_is_bit_identical(trained, large, tmp_path, precision):
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=8, precision=precision))
    straight, stopped = (Store(tmp_path / name) for name in ("straight", "stopped"))
    for store in (straight, stopped):
        copy_run(trained[1], store)
    expected = training.fit(spec, straight, "cpu", threads=1, progress=False)
    assert expected.environments[0]["teacher"].startswith("remembered in float")
    teachers.forget()
    with interrupted_in(5):
        training.fit(spec, stopped, "cpu", threads=1, progress=False)
    teachers.forget()  # as in a new process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(training.fit(spec, stopped, "cpu", threads=1, progress=False)) == outcome(expected)


def test_remembered_and_online_are_one_run_and_one_student_but_for_rounding(trained, large, tmp_path):
    """The id does not name it, the record does. Four epochs later the losses agree to 1e-3."""
    spec, losses = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=4)), []
    for memory in ("online", "remembered"):
        store = Store(tmp_path / memory)
        copy_run(trained[1], store)
        run = training.fit(spec, store, "cpu", threads=1, progress=False, teacher_memory=memory)
        assert run.run_id == spec.run_id and run.environments[0]["teacher"].startswith(memory)
        losses.append(list(run.metrics["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_going_on_with_another_kind_of_teacher_is_warned_of(trained, large, store):
    copy_run(trained[1], store)
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=4))

    with interrupted_in(3):
        training.fit(spec, store, "cpu", threads=1, progress=False, teacher_memory="online")
    with pytest.warns(UserWarning, match="other conditions .teacher online -> remembered in float"):
        training.fit(spec, store, "cpu", threads=1, progress=False, teacher_memory="remembered")


def test_the_next_student_of_a_teacher_finds_its_answers(trained, large, store):
    copy_run(trained[1], store)
    fits = [tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=1), seed=seed) for seed in (0, 1)]
    training.fit(fits[0], store, "cpu", threads=1, progress=False, teacher_memory="remembered")
    [first] = teachers._kept.values()
    known = first.known.sum()
    run = training.fit(fits[1], store, "cpu", threads=1, progress=False)  # "auto", and for one epoch
    assert list(teachers._kept.values()) == [first] and first.known.sum() > known
    assert run.environments[0]["teacher"].startswith("remembered")


def copy_run(run, store):
    shutil.copytree(run.folder, store.root / run.run_id)
