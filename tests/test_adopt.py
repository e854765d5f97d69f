"""Weights that were trained elsewhere: taken over as a run that teaches, or refused in a sentence."""

import pickle

import pytest
import safetensors.torch
import torch

from banlib import build
from banlib.runs import datasets, fit, lineage
from banlib.runs.networks import adopt
from banlib.runs.parameters import check_parameters
from banlib.runs.recipe import BadInput
from banlib.runs.store import RunMissing, Store
from conftest import recipe, tiny_spec
from test_cli import banlib, home, is_one_line, strict  # noqa: F401

NAME = "DenseNetBC-10-4"


def weights(seed=0):
    torch.manual_seed(seed)
    return build(NAME, 10, 1, 8).state_dict()


@pytest.fixture
def file(tmp_path):
    """A function that saves something, as torch does: its path."""

    def save(what, name="mine.pt"):
        torch.save(what, tmp_path / name)
        return tmp_path / name

    return save


def test_weights_become_a_finished_run_of_their_test_error(store, file):
    run = adopt(file(weights()), NAME, "digits", store)
    assert store.status(run.run_id) == "finished" and run.spec.name == "Teacher"
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in weights().items())
    network, digits = build(NAME, 10, 1, 8).eval(), datasets.load("digits")
    network.load_state_dict(weights())
    images = (digits.test.images.float() / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        logits = network(images)
    assert torch.allclose(run.probabilities.float(), logits.softmax(1), atol=1e-3)
    nll = torch.nn.functional.cross_entropy(logits, digits.test.labels).item()
    assert run.results["test_nll"] == pytest.approx(nll, rel=1e-4)
    assert run.results["test_error"] == run.error and list(run.metrics["test_error"]) == [run.error]


def test_the_id_is_of_the_weights_whatever_file_they_are_in(store, file, tmp_path):
    safetensors.torch.save_file(dict(reversed(weights().items())), tmp_path / "mine.safetensors")
    ids = {adopt(path, NAME, "digits", store).run_id for path in (file(weights()), tmp_path / "mine.safetensors")}
    old = tmp_path / "old.pt"
    torch.save(weights(), old, _use_new_zipfile_serialization=False)
    ids.add(adopt(old, NAME, "digits", store).run_id)
    assert len(ids) == 1 and store.ids() == list(ids)
    assert adopt(file(weights(1)), NAME, "digits", store).run_id not in ids


def test_they_teach(store, file):
    teacher = adopt(file(weights()), NAME, "digits", store)
    spec = tiny_spec(1, teacher.run_id, network="WideResNet-10-1", recipe=recipe(epochs=1))
    assert fit.fit(spec, store, "cpu", 1, False).spec.teacher == teacher.run_id
    settings = check_parameters("digits", NAME, 2, 2)._replace(teacher=teacher.spec)
    chains = lineage.plan(settings)
    assert [chain[0] for chain in chains.values()] == [teacher.spec] * 2
    assert {chain[1].teacher for chain in chains.values()} == {teacher.run_id}
    assert {spec.teacher for by_seed in lineage.controls(settings, ["teacher"]).values() for spec in by_seed.values()} == {
        teacher.run_id}  # fmt: skip
    with pytest.raises(RunMissing, match="has imported weights: `banlib runs import` them again"):
        fit.fit(teacher.spec, Store(store.root.with_name("other")), "cpu", 1, False)


def without(name):
    return {key: tensor for key, tensor in weights().items() if key != name}


BIAS = "head.classifier.bias"


@pytest.mark.parametrize("state, said", [
    (without(BIAS), f"does not fit {NAME} for digits: {BIAS} has nothing, expected [10] float32"),
    (weights() | {"a.more": torch.zeros(2)}, "a.more has [2] float32, expected nothing"),
    (weights() | {BIAS: torch.zeros(100)}, f"{BIAS} has [100] float32, expected [10] float32"),
    (weights() | {BIAS: torch.zeros(10).double()}, f"{BIAS} has [10] float64, expected [10] float32"),
    (weights() | {BIAS: torch.full((10,), torch.nan)}, "makes no network: its loss on the test images is nan"),
    ({"state_dict": weights()}, "holds no state dict that can be read safely"),
    ([1, 2], "holds no state dict that can be read safely"), (torch.zeros(3), "holds no state dict"),
    (build(NAME, 10, 1, 8), "holds no state dict that can be read safely"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(store, file, state, said):
    with pytest.raises(BadInput) as caught:
        adopt(file(state), NAME, "digits", store)
    assert said in str(caught.value) and "mine.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert store.ids() == []


class Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors", "mine.pkl"])
def test_nothing_is_executed(store, file, tmp_path, name):
    marker = tmp_path / "executed"
    (tmp_path / "raw").mkdir()
    for path in (file(Malice(marker), name), tmp_path / "raw" / name):
        if path.parent.name == "raw":
            path.write_bytes(pickle.dumps(Malice(marker)))
        with pytest.raises(BadInput, match="holds no state dict that can be read safely"):
            adopt(path, NAME, "digits", store)
    assert not marker.exists() and store.ids() == []


@pytest.mark.parametrize("raw", [b"", b"PK", b"{}", b"\xff" * 100, b"[" * 100_000])
@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors"])
def test_other_bytes_are_refused(store, tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadInput, match="holds no state dict that can be read safely"):
        adopt(tmp_path / name, NAME, "digits", store)


def test_by_the_command_line(banlib, store, file, monkeypatch):  # noqa: F811
    path = file(weights())
    code, out, _ = banlib("runs", "import", path, "--network", NAME, "--dataset", "digits", "--json")
    found = strict(out)
    assert code == 0 and set(found) == {"imported", "test_error", "test_nll", "params"}
    assert store.ids() == [found["imported"]]
    asked = "--network", NAME, "--gens", 1, "--seeds", 2, "--no-controls", "--plan"
    code, out, _ = banlib("lineage", "--teacher", found["imported"][:6], *asked)
    assert code == 0 and [strict(line)["teacher"] for line in out.splitlines()] == [found["imported"]] * 2
    code, out, _ = banlib("lineage", "--teacher", found["imported"], *asked[2:])
    assert {strict(line)["spec"]["network"] for line in out.splitlines()} == {NAME}, "born again: of the teacher's network"
    own = fit.fit(tiny_spec(), store, "cpu", 1, False)
    store.export(own.run_id, store.root.with_name("light"))
    other = fit.fit(tiny_spec(dataset="digits-dev", dataset_digest=datasets.load("digits-dev").digest), store, "cpu", 1, False)
    monkeypatch.setattr(fit, "fit", lambda *args, **how: pytest.fail("it trained"))
    for where, teacher, said in (
        (store.root, other.run_id, "learned digits-dev ("), (store.root, "", "no run starts with ''"),
        (store.root.with_name("light"), own.run_id, "is a record without weights: train it here"),
    ):  # fmt: skip
        for more in ((), ("--plan",)):
            code, out, err = banlib("lineage", "--teacher", teacher, "--gens", 1, "--seeds", 1, "--store", where, *more)
            assert code == 2 and out == "" and is_one_line(err) and said in err
    code, out, err = banlib("runs", "import", path, "--network", "DenseNetBC-10-6", "--dataset", "digits")
    assert code == 2 and out == "" and is_one_line(err) and "does not fit DenseNetBC-10-6 for digits" in err
    code, out, _ = banlib("runs", "list", "--json")
    listed = next(row for row in strict(out) if row["id"] == found["imported"])
    assert (listed["status"], listed["name"], listed["test_error"]) == ("finished", "Teacher", found["test_error"])
