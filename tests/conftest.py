"""Every test has its own BANLIB_HOME, one thread, and, where it trains, a network small enough to train in a second."""

import contextlib

import pytest
import torch

from banlib import data, training
from banlib.recipe import PROFILES, Recipe, RunSpec
from banlib.store import Store


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
    return Store()


TINY = PROFILES["digits"].recipe.model_copy(update={"epochs": 4, "lr_milestones": (2,), "test_every": 2})


def tiny_spec(generation=0, teacher=None, network="DenseNetBC-10-4", recipe=TINY, objective=None, **changes):
    """A run that trains in about a second: digits, one unit per block."""
    return RunSpec(
        **{
            "network": network,
            "dataset": "digits",
            "dataset_digest": data.load("digits").digest,
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
def interrupted_in(epoch):
    """A training inside is interrupted, as from the keyboard, when this epoch begins."""
    untouched = training.train_epoch

    def train_epoch(step, number, *rest):
        if number == epoch:
            raise KeyboardInterrupt
        return untouched(step, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_epoch", train_epoch)
        yield
