"""The records that ship with the book: whole, true to themselves, readable without the dataset they came from."""

import pytest

from banlib.paper import statistics
from banlib.runs import datasets
from banlib.runs.lineage import RESULTS, recorded
from banlib.runs.store import Store

RECORDS = Store(RESULTS)


@pytest.mark.parametrize("run_id", RECORDS.ids())
def test_a_shipped_record_is_whole_and_says_where_it_was_measured(run_id):
    run = RECORDS.load(run_id)  # every byte against the manifest, the spec against the id
    assert run.error == pytest.approx(run.results["test_error"])
    assert run.metrics["epoch"].tolist() == list(range(1, run.spec.recipe.epochs + 1))
    assert run.metrics["test_error"].iloc[-1] == run.results["test_error"], "the last epoch counts"
    assert all(environment["hardware"] and environment["commit"] for environment in run.environments)
    if (run.folder / "weights.safetensors").exists():  # a lineage that a later session goes on from
        assert sum(tensor.numel() for tensor in run.weights().values()) >= run.results["params"]
    else:
        with pytest.raises(FileNotFoundError, match="record without weights"):
            run.weights()


def test_all_records_together_are_small():
    files = [path for run_id in RECORDS.ids() for path in RECORDS.folder(run_id).iterdir()]
    assert sum(path.stat().st_size for path in files) < 60_000_000


def test_the_shipped_cifar100_lineage_is_read_without_the_dataset(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: pytest.fail(f"{name} was loaded, and would be downloaded"))
    lite = next(found for found in recorded() if found.settings.profile.dataset == "cifar100")  # the longest
    assert lite.settings.profile.name == "cifar100-lite at rate 0.1", "the profile's rate was chosen later"
    errors = statistics.errors(lite)
    assert list(errors["name"]) == ["Teacher", "BAN-1", "BAN-2", "BAN-3", "Ens*2", "Ens*3"]
    assert len(lite.labels()) == 10_000 and lite.labels().bincount().tolist() == [100] * 100
