"""Training one generation: who sees what, what a step is, and when. Faults are in test_faults.py."""

import contextlib
import copy
import hashlib
import shutil
import types

import children
import pytest
import torch
from children import outcome
from conftest import interrupted_in, recipe, tiny_spec
from torch.optim.optimizer import register_optimizer_step_pre_hook

from banlib import data, machine, objectives, teachers, training
from banlib.ensemble import error
from banlib.store import Store
from banlib.training import epoch_draw, fit, network_of, new_network

ONLINE, REMEMBERED = recipe(epochs=4), recipe(epochs=10, lr_milestones=(4, 7), test_every=5)  # of nine views


def train(spec, store, **options):
    return fit(spec, store, **{"device": "cpu", "threads": 1, "progress": False} | options)


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
    load, make, objective_loss = training.load_teacher, training.new_network, training.objective_loss

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

    batch = data.Augmented.batch
    monkeypatch.setattr(training, "load_teacher", loaded)
    monkeypatch.setattr(training, "new_network", made)
    monkeypatch.setattr(training, "objective_loss", objective)
    monkeypatch.setattr(data.Augmented, "batch", lambda self, indices, views: (
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


@pytest.mark.parametrize("way", ["online", "remembered"])
def test_a_network_in_training_mode_is_frozen_to_be_a_teacher(trained, way):
    network = network_of(trained[1]).train().requires_grad_(True)
    before = copy.deepcopy(network.state_dict())
    images = augmented()
    if way == "online":
        teacher = teachers.online(network, contextlib.nullcontext)
    else:
        teacher = teachers.remembered(network, contextlib.nullcontext, images, 100, 10)
    indices, views = torch.arange(20), torch.arange(20) % 9
    logits = teacher(images.batch(indices, views), indices, views)
    assert not logits.requires_grad and not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


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
    digits = data.load("digits")
    return data.Augmented(digits.train, digits.mean, digits.std, pad=1, flip=False, border="reflect")


def test_remembered_equals_online_for_every_image_and_view(trained):
    """To 1e-5 in the logits: sums in another order. Any other image or view is a hundred times further off."""
    images, network = augmented(), network_of(trained[1])
    ways = [teachers.remembered(network, contextlib.nullcontext, images, 100, 10),
            teachers.online(network, contextlib.nullcontext)]  # fmt: skip
    everything = torch.cartesian_prod(torch.arange(100), torch.arange(9))
    everything = everything[torch.randperm(900, generator=torch.Generator().manual_seed(0))]
    said = []
    for indices, views in (part.unbind(1) for part in everything.split(50)):
        said.append([teacher(images.batch(indices, views), indices, views) for teacher in ways])
    table, online = (torch.cat(parts) for parts in zip(*said))
    assert (table - online).abs().max() < 1e-5
    image, view = everything.unbind(1)
    apart = torch.cdist(table, online, p=torch.inf)
    different = (image[:, None] != image) | (view[:, None] != view)
    assert (apart[different] > 1e-3).double().mean() > 0.99
    nearest = apart.argmin(1)
    assert (nearest == torch.arange(900)).double().mean() > 0.97  # blank borders make some views of an image equal


# The loss and the step


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_distillation_term_moves_the_weights_as_the_labels_do(trained, store, watched, temperature):
    """In the first step of a real training: what the teacher adds to the gradient is of the size of the label's."""
    spec = tiny_spec(1, trained[1].run_id, recipe=ONLINE, temperature=temperature)
    start = new_network(spec, data.load("digits")).train()
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
    run, images, labels = train(spec, store), augmented(), data.load("digits").train.labels
    student, teacher = new_network(spec, data.load("digits")).double(), network_of(trained[1]).double()
    start = copy.deepcopy(student.state_dict())

    weights, losses = list(student.parameters()), []
    velocity = [torch.zeros_like(weight) for weight in weights]
    for epoch in (1, 2):
        order, views = epoch_draw(spec, epoch, 100, 9)
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


def test_draws_differ_by_seed_generation_and_epoch_alone(store):
    """As the formula says: SHA-256 of "seed/generation/epoch/purpose". The network and the recipe do not matter, so
    students of different networks see the same images."""
    spec = tiny_spec(1, "0" * 16, seed=2)
    draws = [epoch_draw(*case, 100, 9) for case in ((spec, 3), (spec, 4), (tiny_spec(1, "0" * 16, seed=3), 3),
                                                    (tiny_spec(2, "0" * 16, seed=2), 3))]  # fmt: skip
    for part in (0, 1):
        assert not any(torch.equal(draws[0][part], other[part]) for other in draws[1:])
    assert draws[0][1].bincount(minlength=9).min() > 0
    same = tiny_spec(1, "1" * 16, seed=2, network="WideResNet-10-1", recipe=recipe(lr=0.01))
    torch.manual_seed(7)
    assert all(map(torch.equal, draws[0], epoch_draw(same, 3, 100, 9)))

    seed = int.from_bytes(hashlib.sha256(b"2/1/3/epoch").digest()[:8], "big") // 2
    generator = torch.Generator().manual_seed(seed)
    assert torch.equal(draws[0][0], torch.randperm(100, generator=generator))

    ours, theirs = children.context.Pipe()
    child = children.start(children.draw, spec, 100, 9, theirs)
    theirs.close()  # the child's copy alone is open: if it dies, there is an end to waiting
    assert ours.recv() == [part.tolist() for part in draws[0]]
    child.join()


def test_each_generation_and_seed_starts_from_a_new_initialisation(trained):
    digits = data.load("digits")
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


def test_a_student_trains_from_its_own_initialisation(trained, store, watched):
    """Not from its teacher's weights: the first batch through the new network gives the logits of the first step."""
    spec = tiny_spec(1, trained[1].run_id, recipe=ONLINE)
    start = new_network(spec, data.load("digits")).train()
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
        if isinstance(module, torch.nn.Dropout) and module.training and not inputs[0].is_meta:
            seeds.append(torch.random.initial_seed())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    train(spec, Store(tmp_path), deterministic=True)  # no trial, which would draw too
    handle.remove()
    each = [hashlib.sha256(f"0/0/{epoch}/dropout".encode()).digest()[:8] for epoch in (1, 2, 3)]
    assert list(dict.fromkeys(seeds)) == [int.from_bytes(digest, "big") // 2 for digest in each]
    assert len(seeds) == 3 * 2 * 3  # epochs, batches, units


# What comes out


def test_the_test_error_is_that_of_the_stored_probabilities(trained):
    digits, run = data.load("digits"), trained[1]
    network = network_of(run)
    assert not network.training
    numerics = machine.Numerics("fp32", run.environments[-1]["layout"])
    network = numerics.place(network, "cpu")
    probabilities, test_error, nll = training.evaluate(network.train(), digits, numerics)
    assert torch.equal(probabilities, run.probabilities) and test_error == error(probabilities, digits.test.labels)
    images = (digits.test.images.double() / 255 - digits.mean[0].double()) / digits.std[0].double()
    with torch.no_grad():
        logits = network.double().eval()(images)
    expected = -logits.log_softmax(1)[torch.arange(1000), digits.test.labels].mean().item()
    assert nll == pytest.approx(expected, rel=1e-5) and run.results["test_nll"] == nll
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
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    assert outcome(train(trained[1].spec, trained[0])) == outcome(trained[1])


def test_training_learns():
    """Ten percent of the digits are right by chance; this small network gets to know most of the rest."""
    spec = tiny_spec(network="DenseNetBC-10-8", recipe=recipe(epochs=30, lr_milestones=(15, 25), test_every=30))
    assert train(spec, Store()).results["test_error"] < 50


def test_weights_that_do_not_fit_are_refused(trained):
    run = types.SimpleNamespace(spec=trained[1].spec, run_id="0" * 16, weights=lambda: weights)
    weights = trained[1].weights() | {"head.classifier.bias": torch.zeros(9)}
    with pytest.raises(ValueError, match=r"weights of run 0{16} do not fit DenseNetBC-10-4: head.classifier.bias has "
                                         r"torch.Size\(\[9\]\), expected torch.Size\(\[10\]\)"):  # fmt: skip
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


def test_a_compiled_student_learns_the_same(tmp_path, monkeypatch):
    """To 1e-4 in the losses, by the graphs of torch.compile without their C++; nothing else is compiled, or by default."""
    really, compiled, losses = torch.compile, [], []

    def spied(function, **options):
        compiled.append(function.__self__)
        return really(function, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", spied)
    for compile in (False, True):
        run = train(tiny_spec(recipe=recipe(epochs=2)), Store(tmp_path / str(compile)), compile=compile)
        assert run.environments[0]["compiled"] is compile and len(compiled) == compile
        losses.append(list(run.metrics["train_loss"]))
    assert isinstance(compiled[0], torch.nn.Module) and set(run.weights()) == set(compiled[0].state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# Teaching across architectures


@pytest.mark.parametrize("teaches, learns", [
    ("DenseNetBC-10-4", "WideResNet-10-1"), ("WideResNet-10-1", "DenseNetBC-10-4"), ("PreActResNet-11", "WideResNet-10-1"),
    ("DenseNetBC-10-8", "MatchPreResNet-1-1@DenseNetBC-10-8"),
])  # fmt: skip
def test_any_network_teaches_any_other(store, teaches, learns):
    once = recipe(epochs=1, lr_milestones=())
    teacher = fit(tiny_spec(network=teaches, recipe=once), store, progress=False)
    student = fit(tiny_spec(1, teacher.run_id, network=learns, recipe=once), store, progress=False)
    assert student.spec.teacher == teacher.run_id and student.results["params"] != teacher.results["params"]


def test_ends_that_differ_are_refused_before_training_with_both_shapes(store):
    """A stem of 8 channels of 3x3 cannot be that of a network whose stem has 16."""
    teacher = fit(tiny_spec(recipe=recipe(epochs=1)), store, progress=False)
    student = tiny_spec(1, teacher.run_id, network="WideResNet-10-1", share_ends=True)
    with pytest.raises(ValueError, match=r"student's stem has weights \[16, 1, 3, 3\] and the teacher's \[8, 1, 3, 3\]"):
        fit(student, store, progress=False)
    assert store.status(student.run_id) == "missing"


def test_shared_ends_stay_the_teachers_through_a_resume(store):
    teacher = fit(tiny_spec(network="DenseNetBC-10-8", recipe=recipe(epochs=1)), store, progress=False)
    spec = tiny_spec(1, teacher.run_id, network="MatchWideResNet-1-1@DenseNetBC-10-8", share_ends=True)

    with interrupted_in(3):
        fit(spec, store, progress=False)
    resumed = fit(spec, store, progress=False)
    own, given = resumed.weights(), teacher.weights()
    for name in ("stem.weight", "head.classifier.weight", "head.classifier.bias"):
        assert (own[name] == given[name]).all()
