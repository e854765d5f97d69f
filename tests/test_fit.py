"""Training one generation: who sees what, what a step is, and when. Faults are in test_faults.py."""

import contextlib
import copy
import hashlib
import shutil
import threading
import time
import types
import warnings

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import children
from banlib import loop, objectives, teachers
from banlib.ensemble import error
from banlib.runs import accelerate, datasets, disk, fit, machine
from banlib.runs.fit import OutOfTime, network_of, new_network
from banlib.runs.store import Store
from banlib.views import Augmented, draw_epoch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec

ONLINE, REMEMBERED = recipe(epochs=4), recipe(epochs=10, lr_milestones=(4, 7), test_every=5)  # of nine views


def train(spec, store, **options):
    return fit.fit(spec, store, **{"device": "cpu", "threads": 1, "progress": False} | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a teacher that has learned something, and the teacher's run."""
    store = Store(tmp_path_factory.mktemp("runs"))
    return store, train(tiny_spec(recipe=recipe(epochs=12, lr_milestones=(8, 10))), store)


@pytest.fixture
def store(trained, tmp_path):
    """A store of one's own that has the teacher."""
    own = Store(tmp_path / "runs")
    shutil.copytree(trained[1].folder, own.root / trained[1].run_id)
    return own


@pytest.fixture
def watched(monkeypatch):
    """What a training did: teacher, its state before, student, optimizer, and one entry per forward pass of either:
    (who, in training mode, with gradients, input); and per step: (epoch's learning rate, gradients)."""
    seen = types.SimpleNamespace(teacher=None, networks=[], passes=[], steps=[], logits=[], batches=[])
    load, make, objective_loss = fit.load_teacher, fit.new_network, fit.objective_loss

    def loaded(*args):
        seen.teacher = load(*args)
        seen.before = copy.deepcopy(seen.teacher.state_dict())
        return seen.teacher

    def made(*args):
        seen.networks.append(make(*args))
        return seen.networks[-1]

    def objective(name, student_logits, labels, teacher_logits, *rest):
        if name != "label":
            seen.logits.append((student_logits.detach().clone(), labels, teacher_logits))
        return objective_loss(name, student_logits, labels, teacher_logits, *rest)

    def passed(module, inputs):
        for who, network in {"teacher": seen.teacher, "student": seen.networks[-1] if seen.networks else None}.items():
            if module is network:
                training_mode = any(part.training for part in module.modules())
                seen.passes.append((who, training_mode, torch.is_grad_enabled(), inputs[0].clone()))

    def stepped(optimizer, *_):
        [group] = optimizer.param_groups
        seen.optimizer = optimizer
        seen.steps.append((group["lr"], [parameter.grad.clone() for parameter in group["params"]]))

    batch = Augmented.batch
    monkeypatch.setattr(fit, "load_teacher", loaded)
    monkeypatch.setattr(fit, "new_network", made)
    monkeypatch.setattr(fit, "objective_loss", objective)
    monkeypatch.setattr(Augmented, "batch", lambda self, indices, views: (
        seen.batches.append((indices.clone(), views.clone())), batch(self, indices, views))[1])  # fmt: skip
    handles = [torch.nn.modules.module.register_module_forward_pre_hook(passed),
               register_optimizer_step_pre_hook(stepped)]  # fmt: skip
    yield seen
    for handle in handles:
        handle.remove()


# The teacher


@pytest.mark.parametrize("own", [ONLINE, REMEMBERED], ids=["online", "remembered"])
def test_the_teacher_stands_still_while_its_student_learns(trained, store, watched, own):
    """Eval mode at every pass, no gradient, neither weights nor BatchNorm buffers move, and it is another object."""
    student_run = train(tiny_spec(1, trained[1].run_id, recipe=own), store)
    teacher, student = watched.teacher, watched.networks[-1]
    assert teacher is not student
    passes = [entry[1:3] for entry in watched.passes if entry[0] == "teacher"]
    assert passes and set(passes) == {(False, False)}
    assert {entry[1:3] for entry in watched.passes if entry[0] == "student"} == {(True, True), (False, False)}

    after = teacher.state_dict()
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(after[name], tensor) for name, tensor in watched.before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in trained[1].weights().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())

    storages = [{tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
                for network in (teacher, student)]  # fmt: skip
    assert not storages[0] & storages[1]
    stepped = {id(parameter) for group in watched.optimizer.param_groups for parameter in group["params"]}
    assert stepped == {id(parameter) for parameter in student.parameters()}
    assert student_run.weights()["head.classifier.weight"].ne(after["head.classifier.weight"]).any()


def test_the_teacher_sees_the_students_augmented_batch(trained, store, watched):
    train(tiny_spec(1, trained[1].run_id, recipe=ONLINE), store)
    learning = [entry for entry in watched.passes if entry[0] == "teacher" or entry[1]]
    assert [entry[0] for entry in learning] == ["teacher", "student"] * 8  # 4 epochs of 2 batches
    for asked, learned in zip(learning[::2], learning[1::2]):
        assert torch.equal(asked[3], learned[3])
    assert not torch.equal(learning[1][3], learning[3][3])


def test_a_remembered_teacher_says_what_it_would_of_the_students_batch(trained, store, watched):
    train(tiny_spec(1, trained[1].run_id, recipe=REMEMBERED), store)
    batches = [entry[3] for entry in watched.passes if entry[:2] == ("student", True)]
    assert len(batches) == len(watched.logits) == 20
    network = network_of(trained[1])
    for batch, (_, _, said) in zip(batches, watched.logits):
        with torch.no_grad():
            assert torch.allclose(network(batch), said, atol=1e-5)


def augmented():
    digits = datasets.load("digits")
    return Augmented(digits.train, digits.mean, digits.std, pad=1, flip=False, border="reflect")


# The loss and the step


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distillation_term_moves_the_weights_as_the_labels_do(trained, store, watched, temperature):
    """In the first step of a real training: what the teacher adds to the gradient is of the size of the label's."""
    spec = tiny_spec(1, trained[1].run_id, recipe=ONLINE, temperature=temperature)
    start = new_network(spec, datasets.load("digits")).train()
    train(spec, store)
    batch = next(entry[3] for entry in watched.passes if entry[:2] == ("student", True))
    torch.nn.functional.cross_entropy(start(batch), watched.logits[0][1]).backward()
    label = torch.cat([parameter.grad.flatten() for parameter in start.parameters()])
    both = torch.cat([gradient.flatten() for gradient in watched.steps[0][1]])
    assert 0.2 < (both - label).norm() / label.norm() < 5
    for logits, labels, said in watched.logits:  # and at every later step, by the logits' gradients
        sizes = []
        for loss in (objectives.label_loss, lambda logits, _: objectives.distillation_loss(logits, said, temperature)):
            wanted = logits.clone().requires_grad_()
            loss(wanted, labels).backward()
            sizes.append(wanted.grad.norm())
        assert sizes[1] / sizes[0] > 0.05


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_training_equals_a_float64_reference(trained, store, temperature):
    """Loss (eqs. 1-3), gradients, weight decay, SGD with Nesterov momentum, by their formulas: four steps."""
    T, lr, decay, mu = temperature, 0.05, 0.01, 0.8
    spec = tiny_spec(1, trained[1].run_id, temperature=T, recipe=recipe(
        epochs=2, batch=50, lr=lr, weight_decay=decay, momentum=mu, lr_milestones=(1,), lr_factor=0.5))  # fmt: skip
    run, images, labels = train(spec, store), augmented(), datasets.load("digits").train.labels
    student, teacher = new_network(spec, datasets.load("digits")).double(), network_of(trained[1]).double()
    start = copy.deepcopy(student.state_dict())

    weights, losses = list(student.parameters()), []
    velocity = [torch.zeros_like(weight) for weight in weights]
    for epoch in (1, 2):
        order, views = draw_epoch(spec.stream("epoch", epoch), 100, 9)
        for batch, view in zip(order.split(50), views.split(50)):
            pixels = images.batch(batch, view).double()
            said, logits = (teacher(pixels) / T).softmax(1).detach(), student(pixels)
            label_term = -logits.log_softmax(1)[torch.arange(50), labels[batch]].mean()
            loss = label_term - T**2 * (said * (logits / T).log_softmax(1)).sum(1).mean()
            losses.append(loss.item())
            for weight, v, gradient in zip(weights, velocity, torch.autograd.grad(loss, weights)):
                gradient += decay * weight.detach()
                v.mul_(mu).add_(gradient)
                weight.data -= lr * 0.5 ** (epoch - 1) * (gradient + mu * v)

    assert list(run.metrics["train_loss"]) == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-5)
    for name, tensor in run.weights().items():
        moved, expected = tensor.double() - start[name], (student.state_dict()[name] - start[name]).double()
        assert (moved - expected).norm() <= 1e-3 * expected.norm() + 1e-7, name


# The schedule, and what is drawn


def test_the_learning_rate_follows_the_schedule_by_epoch(store, watched):
    own = recipe(epochs=4, batch=30, lr=0.1, lr_milestones=(1, 3), lr_factor=0.2, test_every=4)
    run = train(tiny_spec(recipe=own), store)
    expected = [rate for rate in (0.1, 0.02, 0.02, 0.004) for _ in range(4)]  # 30 + 30 + 30 + 10 images
    assert [lr for lr, _ in watched.steps] == pytest.approx(expected)
    assert list(run.metrics["lr"]) == pytest.approx(expected[::4])


def test_every_image_is_seen_once_an_epoch_the_last_batch_too(store, watched):
    train(tiny_spec(recipe=recipe(epochs=4, batch=30, test_every=4)), store)
    assert [len(indices) for indices, _ in watched.batches] == [30, 30, 30, 10] * 4
    orders = []
    for first in range(0, 16, 4):
        orders.append(torch.cat([indices for indices, _ in watched.batches[first : first + 4]]))
        assert torch.equal(orders[-1].sort().values, torch.arange(100))
    assert not any(torch.equal(orders[0], order) for order in orders[1:])
    views = torch.cat([views for _, views in watched.batches])
    assert set(views.tolist()) == set(range(9))


def test_draws_differ_by_seed_generation_and_epoch_alone():
    """The network and the recipe do not matter, so students of different networks see the same images."""

    def drawn(spec, epoch=3):
        return draw_epoch(spec.stream("epoch", epoch), 100, 9)

    spec = tiny_spec(1, "0" * 16, seed=2)
    draws = [drawn(spec), drawn(spec, 4), drawn(tiny_spec(1, "0" * 16, seed=3)), drawn(tiny_spec(2, "0" * 16, seed=2))]
    for part in (0, 1):
        assert not any(torch.equal(draws[0][part], other[part]) for other in draws[1:])
    same = tiny_spec(1, "1" * 16, seed=2, network="WideResNet-10-1", recipe=recipe(lr=0.01))
    torch.manual_seed(7)
    assert all(map(torch.equal, draws[0], drawn(same)))
    seed = int.from_bytes(hashlib.sha256(b"2/1/3/epoch").digest()[:8], "big") // 2
    assert torch.equal(draws[0][0], torch.randperm(100, generator=torch.Generator().manual_seed(seed)))


def test_each_generation_and_seed_starts_from_a_new_initialization(trained):
    digits = datasets.load("digits")
    specs = [trained[1].spec, tiny_spec(seed=1), tiny_spec(1, trained[1].run_id), tiny_spec(2, "0" * 16),
             tiny_spec(1, "0" * 16, seed=1)]  # fmt: skip
    starts = [new_network(spec, digits).state_dict() for spec in specs] + [trained[1].weights()]
    for name in starts[0]:
        if name.endswith("weight") and "conv" in name or name in ("stem.weight", "head.classifier.weight"):
            for first in range(len(starts)):
                for other in range(first):
                    assert not torch.equal(starts[first][name], starts[other][name]), name
    again = new_network(specs[2], digits).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in starts[2].items())


def test_a_student_trains_from_its_own_initialization(trained, store, watched):
    """Not from its teacher's weights: the first batch through the new network gives the logits of the first step."""
    spec = tiny_spec(1, trained[1].run_id, recipe=ONLINE)
    start = new_network(spec, datasets.load("digits")).train()
    train(spec, store)
    batch = next(entry[3] for entry in watched.passes if entry[:2] == ("student", True))
    assert torch.allclose(start(batch).detach(), watched.logits[0][0], atol=1e-5)


@pytest.mark.parametrize("network", ["DenseNetBC-10-4", "WideResNet-10-1"])
def test_a_run_depends_on_no_state_of_the_process_and_leaves_none(tmp_path, network):
    """The global generators, which dropout draws from too, and the number of threads."""
    spec, outcomes = tiny_spec(network=network, recipe=recipe(epochs=2)), []
    for seed, threads in ((1, 1), (2, 3)):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)  # fit is asked for one
        before = torch.random.get_rng_state()
        outcomes.append(outcome(train(spec, Store(tmp_path / str(seed)))))
        assert torch.equal(torch.random.get_rng_state(), before) and torch.get_num_threads() == threads
    assert outcomes[0] == outcomes[1]


def test_dropout_draws_anew_each_epoch(tmp_path):
    spec, seeds = tiny_spec(network="WideResNet-10-1", recipe=recipe(epochs=3, dropout=0.5)), []

    def hook(module, inputs):
        if isinstance(module, torch.nn.Dropout) and module.training and len(inputs[0]) > 2:  # of which memory is counted
            seeds.append(torch.random.initial_seed())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    train(spec, Store(tmp_path))
    handle.remove()
    each = [hashlib.sha256(f"0/0/{epoch}/dropout".encode()).digest()[:8] for epoch in (1, 2, 3)]
    assert list(dict.fromkeys(seeds)) == [int.from_bytes(digest, "big") // 2 for digest in each]
    assert len(seeds) == 3 * 2 * 3  # epochs, batches, units


# What comes out


def test_the_test_error_is_that_of_the_stored_probabilities(trained):
    digits, run = datasets.load("digits"), trained[1]
    network = network_of(run)
    assert not network.training
    probabilities, test_error, nll = run.probabilities, run.results["test_error"], run.results["test_nll"]
    assert test_error == error(probabilities, digits.test.labels)
    images = (digits.test.images.double() / 255 - digits.mean[0].double()) / digits.std[0].double()
    with torch.no_grad():
        logits = network.double().eval()(images)
    expected = -logits.log_softmax(1)[torch.arange(1000), digits.test.labels].mean().item()
    assert nll == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(probabilities.double(), logits.softmax(1), atol=1e-3)
    assert 100 * (logits.argmax(1) != digits.test.labels).double().mean().item() == pytest.approx(test_error, abs=0.2)


def test_training_loss_and_error_are_means_over_the_epochs_images(store, watched):
    """Not over batches: the last one is smaller."""
    train(tiny_spec(recipe=ONLINE, seed=5), store)  # something the spied label+teacher is not part of
    teacher = tiny_spec(recipe=ONLINE, seed=5)
    run = train(tiny_spec(1, teacher.run_id, seed=5, recipe=recipe(epochs=1, batch=30)), store)
    losses, wrong = 0.0, 0
    for logits, labels, said in watched.logits:
        loss = objectives.label_loss(logits, labels) + objectives.distillation_loss(logits, said)
        losses += loss.item() * len(labels)
        wrong += (logits.argmax(1) != labels).sum().item()
    assert len(watched.logits) == 4 and len(watched.logits[-1][1]) == 10
    assert run.results["train_loss"] == pytest.approx(losses / 100, rel=1e-5) and run.results["train_error"] == wrong


def test_a_finished_run_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", lambda *_, **__: pytest.fail("trained again"))
    assert outcome(train(trained[1].spec, trained[0])) == outcome(trained[1])


def test_training_learns():
    """Ten percent of the digits are right by chance; this small network gets to know most of the rest."""
    spec = tiny_spec(network="DenseNetBC-10-8", recipe=recipe(epochs=30, lr_milestones=(15, 25), test_every=30))
    assert train(spec, Store()).results["test_error"] < 50


def test_weights_that_do_not_fit_are_refused(trained):
    run = types.SimpleNamespace(spec=trained[1].spec, run_id="0" * 16, weights=lambda: weights)
    weights = trained[1].weights() | {"head.classifier.bias": torch.zeros(9)}
    expected = r"weights of run 0{16} do not fit DenseNetBC-10-4: head.classifier.bias has {}, expected \[10\] float32"
    for bad, found in ((torch.zeros(9), r"\[9\] float32"), (torch.zeros(10).double(), r"\[10\] float64")):
        weights = trained[1].weights() | {"head.classifier.bias": bad}
        with pytest.raises(ValueError, match=expected.replace("{}", found)):
            network_of(run)
    weights = {name: tensor for name, tensor in trained[1].weights().items() if name != "stem.weight"}
    with pytest.raises(ValueError, match="stem.weight has nothing, expected"):
        network_of(run)


def test_bf16_trains_to_nearly_the_same_losses(tmp_path):
    """Autocast and channels_last: rounding of 2**-8 in the layers, float32 weights and loss."""
    losses = []
    for precision in ("fp32", "bf16"):
        run = train(tiny_spec(recipe=recipe(precision=precision)), Store(tmp_path))
        assert run.environments[0]["precision"] == precision
        assert {tensor.dtype for tensor in run.weights().values()} == {torch.float32, torch.int64}
        losses.append(run.metrics["train_loss"])
    assert list(losses[0]) == pytest.approx(list(losses[1]), rel=0.02) and list(losses[0]) != list(losses[1])


# Teaching across architectures


@pytest.mark.parametrize("teaches, learns", [
    ("DenseNetBC-10-4", "WideResNet-10-1"), ("WideResNet-10-1", "DenseNetBC-10-4"), ("PreActResNet-11", "WideResNet-10-1"),
    ("DenseNetBC-10-8", "MatchPreResNet-1-1@DenseNetBC-10-8"),
])  # fmt: skip
def test_any_network_teaches_any_other(store, teaches, learns):
    once = recipe(epochs=1, lr_milestones=())
    teacher = fit.fit(tiny_spec(network=teaches, recipe=once), store, progress=False)
    student = fit.fit(tiny_spec(1, teacher.run_id, network=learns, recipe=once), store, progress=False)
    assert student.spec.teacher == teacher.run_id and student.results["params"] != teacher.results["params"]


def test_ends_that_differ_are_refused_before_training_with_both_shapes(store):
    """A stem of 8 channels of 3x3 cannot be that of a network whose stem has 16."""
    teacher = fit.fit(tiny_spec(recipe=recipe(epochs=1)), store, progress=False)
    student = tiny_spec(1, teacher.run_id, network="WideResNet-10-1", share_ends=True)
    with pytest.raises(ValueError, match=r"student's stem has weights \[16, 1, 3, 3\] and the teacher's \[8, 1, 3, 3\]"):
        fit.fit(student, store, progress=False)
    assert store.status(student.run_id) == "missing"


def test_shared_ends_stay_the_teachers_through_a_resume(store):
    teacher = fit.fit(tiny_spec(network="DenseNetBC-10-8", recipe=recipe(epochs=1)), store, progress=False)
    spec = tiny_spec(1, teacher.run_id, network="MatchWideResNet-1-1@DenseNetBC-10-8", share_ends=True)

    with interrupted_in(3):
        fit.fit(spec, store, progress=False)
    resumed = fit.fit(spec, store, progress=False)
    own, given = resumed.weights(), teacher.weights()
    for name in ("stem.weight", "head.classifier.weight", "head.classifier.bias"):
        assert (own[name] == given[name]).all()


# Which kind of teacher


@pytest.fixture
def nothing_kept():
    accelerate.forget()
    yield
    accelerate.forget()


@pytest.fixture
def large(monkeypatch, nothing_kept):
    """Tables are filled as they are needed, as CIFAR's are, and hold the digits' nine views."""
    monkeypatch.setattr(accelerate, "SMALL", 0)


def choose(trained, epochs=10, memory="auto", **options):
    images = augmented()
    return accelerate.choose_teacher(network_of(trained[1]), contextlib.nullcontext, images, 10, epochs, memory, **options)


@pytest.mark.parametrize("memory, epochs, kind", [
    ("auto", 8, "online"),  # nine views: eight epochs ask fewer questions than there are
    ("auto", 9, "remembered in float32"), ("online", 9, "online"), ("remembered", 1, "remembered in float32"),
])  # fmt: skip
def test_a_small_table_is_filled_at_once_where_that_is_cheaper(trained, memory, epochs, kind):
    teacher = choose(trained, epochs, memory)
    assert teachers.kind(teacher) == kind
    assert kind == "online" or teacher.known.all()


@pytest.mark.parametrize("memory, epochs, kind", [
    ("auto", 4, "online"),  # 9 (1 - (8/9)^4) / 4 = 0.85 of the online teacher's passes would be left
    ("auto", 7, "remembered"),  # 9 (1 - (8/9)^7) / 7 = 0.72
    ("online", 7, "online"), ("remembered", 1, "remembered"),
])  # fmt: skip
def test_a_large_table_is_filled_as_needed_where_that_saves_a_quarter(trained, large, memory, epochs, kind):
    teacher = choose(trained, epochs, memory)
    assert teachers.kind(teacher).startswith(kind)
    assert kind == "online" or not teacher.known.any()


def test_a_table_that_free_memory_does_not_hold_is_not_made(trained, large, monkeypatch):
    """100 x 9 x (10 answers of two bytes or four, and a flag), beside what training takes; a tenth stays free."""
    size = 2 if "float16" in teachers.kind(choose(trained, memory="remembered")) else 4
    needed = 100 * 9 * (10 * size + 1) + 7000
    monkeypatch.setattr(machine, "free_memory", lambda device: needed / 0.9 + 1)
    with warnings.catch_warnings(action="error"):
        assert teachers.kind(choose(trained, reserve=7000)).startswith("remembered")
    monkeypatch.setattr(machine, "free_memory", lambda device: needed / 0.9 - 1)
    with pytest.warns(UserWarning, match="asked online: remembering its answers takes .* are free on cpu"):
        assert teachers.kind(choose(trained, reserve=7000)) == "online"


def test_the_table_of_another_teacher_is_freed_before_room_is_looked_for(trained, large, monkeypatch):
    choose(trained, key="one teacher")
    kept = []
    monkeypatch.setattr(machine, "free_memory", lambda device: kept.append(dict(accelerate._kept)) or 10**9)
    choose(trained, key="another")
    assert kept == [{}] and list(accelerate._kept) == ["another"]


def test_an_unknown_way_is_refused_before_training(trained, tmp_path):
    spec, store = tiny_spec(1, trained[1].run_id), Store(tmp_path / "other")
    with pytest.raises(ValueError, match="unknown teacher_memory 'remember'; did you mean 'remembered'"):
        train(spec, store, teacher_memory="remember")
    with pytest.raises(ValueError, match="unknown speed-up 'compiled'; did you mean 'compile'"):
        train(spec, store, accelerate=("compiled",))
    assert store.ids() == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_student_of_a_remembering_teacher_is_bit_identical(trained, large, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0)
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=8, precision=precision))
    straight, stopped = (Store(tmp_path / name) for name in ("straight", "stopped"))
    for store in (straight, stopped):
        shutil.copytree(trained[1].folder, store.root / trained[1].run_id)
    expected = train(spec, straight)
    assert expected.environments[0]["teacher"].startswith("remembered in float")
    accelerate.forget()
    with interrupted_in(5):
        train(spec, stopped)
    accelerate.forget()  # as in a new process
    with warnings.catch_warnings(action="error"):
        assert outcome(train(spec, stopped)) == outcome(expected)


def test_remembered_and_online_are_one_run_and_one_student_but_for_rounding(trained, large, tmp_path):
    """The id does not name it, the record does. Four epochs later the losses agree to 1e-3."""
    spec, losses = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=4)), []
    for memory in ("online", "remembered"):
        store = Store(tmp_path / memory)
        shutil.copytree(trained[1].folder, store.root / trained[1].run_id)
        run = train(spec, store, teacher_memory=memory)
        assert run.run_id == spec.run_id and run.environments[0]["teacher"].startswith(memory)
        losses.append(list(run.metrics["train_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_going_on_with_another_kind_of_teacher_is_warned_of(trained, large, store):
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=4))
    with interrupted_in(3):
        train(spec, store, teacher_memory="online")
    with pytest.warns(UserWarning, match="other conditions .teacher online -> remembered in float"):
        train(spec, store, teacher_memory="remembered")


def test_the_next_student_of_a_teacher_finds_its_answers_and_has_its_own_time(trained, large, store, clock):
    specs = [tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=1), seed=seed) for seed in (0, 1)]
    soon = clock.seconds + 10_000
    train(specs[0], store, teacher_memory="remembered", until=soon)
    [first] = accelerate._kept.values()
    known = first.known.sum()
    clock.seconds = soon + 1  # the first one's time is over, the second's is not
    run = train(specs[1], store)  # "auto", and for one epoch
    assert list(accelerate._kept.values()) == [first] and first.known.sum() > known
    assert run.environments[0]["teacher"].startswith("remembered")


# Time, and what is saved


@pytest.fixture
def clock(monkeypatch):
    """The time as `fit` sees it, in seconds; a batch or an answer of a remembering teacher takes ten."""
    now = types.SimpleNamespace(seconds=1000.0, batches=0)

    def tick():
        now.seconds, now.batches = now.seconds + 10, now.batches + 1

    monkeypatch.setattr(Augmented, "batch", spied(Augmented.batch, tick))
    shown = types.SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr(fit, "time", shown)
    return now


def test_time_stops_the_first_epoch_too_within_a_step(store, clock):
    """Four steps in an epoch, of which the second sees that the time is up."""
    spec = tiny_spec(recipe=recipe(batch=25), seed=8)
    with pytest.raises(OutOfTime, match=r"^DenseNetBC-10-4 Teacher \(run .*\) has 0 of 4 epochs$"):
        train(spec, store, until=1015)
    assert clock.batches == 2 and store.status(spec.run_id) == "live"


def test_time_stops_a_teacher_that_is_asked_about_a_whole_epoch(trained, large, store, clock, monkeypatch):
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=8), seed=8)
    monkeypatch.setattr(teachers, "ASKED_AT_ONCE", 4)  # so 25 times or more
    with pytest.raises(OutOfTime, match="has 0 of 8 epochs"):
        train(spec, store, until=clock.seconds + 45)
    assert 5 <= clock.batches <= 6  # one of them by `teachers.table_type`


def test_time_that_is_over_while_a_table_is_filled_is_told(trained, store, clock):
    spec = tiny_spec(1, trained[1].run_id, recipe=recipe(epochs=9), seed=8)  # filled at once, before epochs
    with pytest.raises(OutOfTime, match=r"^DenseNetBC-10-4 BAN-1 \(run .*\) is not finished$"):
        train(spec, store, until=clock.seconds + 45)
    assert clock.batches == 5


def test_no_epoch_is_begun_that_would_end_too_late(store, monkeypatch):
    """Epochs of ten seconds by the clock: of twenty-five seconds, two are used."""
    now, epochs = types.SimpleNamespace(seconds=1000.0), loop.train_epoch

    def train_epoch(*args, **more):
        now.seconds += 10
        return epochs(*args, **more)

    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    clock = types.SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr(fit, "time", clock)
    spec = tiny_spec(seed=8)
    with pytest.raises(OutOfTime, match=r"has 2 of 4 epochs$"):
        train(spec, store, until=1025)
    assert store.status(spec.run_id) == "live"
    run = train(spec, store)
    assert len(run.metrics) == 4 and len(run.environments) == 2


def test_a_run_whose_time_is_up_before_it_begins_leaves_nothing(tmp_path):
    store = Store(tmp_path / "other")
    with pytest.raises(OutOfTime, match="was not begun$"):
        train(tiny_spec(), store, until=time.monotonic() - 1)
    assert store.ids() == []


def test_resume_points_are_written_by_time(store, monkeypatch):
    """Of epochs of four seconds by the clock, each third; a run that takes less than ten seconds writes none."""
    saved, now, epochs = [], types.SimpleNamespace(seconds=0.0), loop.train_epoch

    def train_epoch(*args, **more):
        now.seconds += now.each
        return epochs(*args, **more)

    from banlib.runs.work import Work

    monkeypatch.setattr(Work, "save", spied(Work.save, lambda: saved.append(now.seconds)))
    monkeypatch.setattr(loop, "train_epoch", train_epoch)
    clock = types.SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=time.perf_counter)
    monkeypatch.setattr(fit, "time", clock)
    for now.each, expected in ((4, [12, 24]), (1, [])):
        now.seconds = 0.0
        train(tiny_spec(seed=8 + now.each, recipe=recipe(epochs=7)), store)
        assert saved == expected
        saved.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_stop_saves_the_newest_finished_epoch(tmp_path, error):
    """Though the epoch under way has moved the weights: with the bits of a run that nothing stopped."""
    spec, stores = tiny_spec(network="WideResNet-10-1"), [Store(tmp_path / name) for name in ("straight", "stopped")]
    expected = train(spec, stores[0])
    steps = []

    def stop(*_):
        steps.append(1)
        if len(steps) == 6:  # of two in an epoch: the third epoch's second, whose weights have not moved yet
            raise error

    handle = register_optimizer_step_pre_hook(stop)
    with pytest.raises((error, RuntimeError)):
        train(spec, stores[1])
    handle.remove()
    [point] = stores[1].folder(spec.run_id, "live").glob("resume-*")
    assert point.name.startswith("resume-000002-")
    run = train(spec, stores[1])
    assert outcome(run) == outcome(expected) and len(run.environments) == 2


def spied(function, look):
    return lambda *args, **more: (look(), function(*args, **more))[1]


# State that the process has


@pytest.mark.parametrize("network", ["DenseNetBC-10-4", "WideResNet-10-1"])
def test_runs_in_threads_have_the_bits_of_runs_one_after_the_other(tmp_path, network):
    import threading

    specs = [tiny_spec(network=network, seed=seed, recipe=recipe(epochs=2)) for seed in (1, 2, 3)]
    straight, together = Store(tmp_path / "straight"), Store(tmp_path / "together")
    expected = [outcome(train(spec, straight)) for spec in specs]
    threads = [threading.Thread(target=train, args=(spec, together)) for spec in specs]
    with pytest.warns(UserWarning, match="runs in threads of one process share its random numbers, so they take turns"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [outcome(together.load(spec.run_id)) for spec in specs] == expected


SETTINGS = {
    "dtype": (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    "device": (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device("cpu")),
    "matmul": (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
    "threads": (lambda: torch.set_num_threads(3), lambda: torch.set_num_threads(1)),
    "generator": (lambda: torch.manual_seed(77), lambda: None),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_depends_on_no_setting_of_the_process_and_leaves_it(tmp_path, name):
    spec = tiny_spec(network="WideResNet-10-1", recipe=recipe(epochs=2))
    expected, (change, undo) = outcome(train(spec, Store(tmp_path / "straight"))), SETTINGS[name]
    change()
    try:
        kinds = torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()
        assert outcome(train(spec, Store(tmp_path / "other"))) == expected
        assert kinds == (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision())
    finally:
        undo()


@pytest.mark.parametrize("context", [
    torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16),
], ids=["inference", "no_grad", "autocast"])  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_depends_on_no_context_around_it(tmp_path, context, precision):
    spec = tiny_spec(recipe=recipe(epochs=2, precision=precision))
    expected = outcome(train(spec, Store(tmp_path / "straight")))
    with context():
        assert outcome(train(spec, Store(tmp_path / "other"))) == expected


# Memory


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(), MemoryError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes"),
], ids=range(5))  # fmt: skip
def test_a_device_without_the_memory_is_told_in_a_sentence(store, monkeypatch, error):
    def too_much(*args, **more):
        raise error

    monkeypatch.setattr(loop, "train_epoch", too_much)
    said = (r"^DenseNetBC-10-4 Teacher \(run .*\) needs more memory than cpu has \(.* GB free now\): take fewer jobs, "
            "a device with more, or a smaller network$")  # fmt: skip
    with pytest.raises(RuntimeError, match=said):
        train(tiny_spec(seed=9), store)


def test_another_error_stays_what_it_is(store, monkeypatch):
    def wrong(*args, **more):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "train_epoch", wrong)
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        train(tiny_spec(seed=9), store)


def test_training_imports_nothing_that_it_does_not_need(tmp_path):
    teacher = tiny_spec()
    child = children.start(children.train_lightly, [teacher, tiny_spec(1, teacher.run_id)], tmp_path)
    child.join()
    assert child.exitcode == 0


def test_time_is_up_while_another_process_has_the_run(store, monkeypatch):
    monkeypatch.setattr(disk, "SILENT", 0)
    spec, told = tiny_spec(), []

    def second():
        with pytest.raises(fit.OutOfTime, match="is not finished"):
            fit.fit(spec, store, "cpu", 1, False, until=time.monotonic() + 2)
        told.append(True)

    with store.claim(spec):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(120)
        assert told == [True]
