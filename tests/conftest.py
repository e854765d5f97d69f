"""Every test has its own BANLIB_HOME, one thread, and, where it trains, a network small enough to train in a second."""

import contextlib
import os

import pytest
import torch

from banlib import loop
from banlib.runs import datasets
from banlib.runs.recipe import PROFILES, Recipe, RunSpec


def pytest_collection_modifyitems(items):
    """What takes longest begins first: of several workers, one builds the real book, the last waits for Ray."""
    pages, ray = ([item for item in items if item.path.name == f"test_{name}.py"] for name in ("pages", "cluster"))
    rest = [item for item in items if item not in pages and item not in ray]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    last = max(0, (workers - 1) * len(items) // workers - len(pages))  # where the last worker's share begins
    items[:] = pages + rest[:last] + ray + rest[last:]


@pytest.fixture(autouse=True, scope="session")
def home_of_the_session(tmp_path_factory):
    """For what is made once for several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BANLIB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("BANLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BANLIB_DATA", raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def store():
    from banlib.runs.store import Store

    return Store()


TINY = PROFILES["digits"].recipe.model_copy(update={"epochs": 4, "lr": 0.1, "lr_milestones": (2,), "test_every": 2})


def tiny_spec(generation=0, teacher=None, network="DenseNetBC-10-4", recipe=TINY, objective=None, **changes):
    """A run that trains in about a second: digits, one unit per block."""
    return RunSpec(
        **{
            "network": network,
            "dataset": "digits",
            "dataset_digest": datasets.load("digits").digest,
            "recipe": recipe,
            "objective": objective or ("label+teacher" if teacher else "label"),
            "seed": 0,
            "generation": generation,
            "teacher": teacher,
        }
        | changes
    )


def recipe(**changes):
    return Recipe(**(TINY.model_dump() | changes))


@contextlib.contextmanager
def interrupted_in(epoch, error=KeyboardInterrupt):
    """A training inside is interrupted, as from the keyboard, when this epoch begins.

    Epochs are counted from 1, over all trainings inside: a resumed one begins with its first epoch that is missing.
    """
    untouched, begun = loop.train_epoch, 0

    def train_epoch(*args, **kwargs):
        nonlocal begun
        begun += 1
        if begun == epoch:
            raise error
        return untouched(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr(loop, "train_epoch", train_epoch)
        yield
