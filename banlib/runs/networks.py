"""Networks from what is stored: of a spec, of a finished run, of a resume point."""

import torch

from banlib import models
from banlib.runs import datasets, machine
from banlib.runs.store import RunMissing
from banlib.runs.work import RunDamaged


def pack(student, optimizer):
    """A copy of all that the next epoch needs, as named tensors: state dict, momentum."""
    tensors = {f"network.{name}": tensor.clone() for name, tensor in student.state_dict().items()}
    for name, parameter in student.named_parameters():
        if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"momentum.{name}"] = momentum.clone()
    return tensors


def unpack(tensors, student, optimizer):
    """The inverse of `pack`. RunDamaged if a part is missing, unknown or of another shape."""
    trained = {name: each for name, each in student.named_parameters() if each.requires_grad}
    expected = {f"network.{name}": tensor for name, tensor in student.state_dict().items()}
    momentum = trained if optimizer.defaults["momentum"] else {}
    if misfit := difference(
        tensors, expected | {f"momentum.{name}": momentum[name] for name in momentum}
    ):
        what = f"the resume point is refused: {misfit}"
        raise RunDamaged(f"{what}; `banlib runs rm` starts the run over")
    student.load_state_dict({name: tensors[f"network.{name}"] for name in student.state_dict()})
    for name, parameter in momentum.items():
        buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
        optimizer.state[parameter]["momentum_buffer"] = buffer


def difference(found, expected):
    """The first tensor, by name, whose shape or type differs, in words; None if none does."""
    for name in sorted(set(found) | set(expected)):
        kinds = [
            f"{list(side[name].shape)} {str(side[name].dtype)[6:]}" if name in side else "nothing"
            for side in (found, expected)
        ]
        if kinds[0] != kinds[1]:
            return f"{name} has {kinds[0]}, expected {kinds[1]}"


def new_network(spec, dataset):
    """A network for spec on the CPU, its initial weights those of its seed and generation."""
    ends = len(dataset.classes), dataset.channels, dataset.image_size, spec.recipe.dropout
    with machine.seeded(spec.stream("init"), torch.device("cpu")):
        return models.build(spec.network, *ends)


def network_of(run, dataset=None):
    """The trained network of a run, on the CPU, in eval mode. ValueError if its weights misfit."""
    network = new_network(run.spec, dataset or datasets.load(run.spec.dataset))
    weights = run.weights()
    if misfit := difference(weights, network.state_dict()):
        raise ValueError(f"weights of run {run.run_id} do not fit {run.spec.network}: {misfit}")
    network.load_state_dict(weights)
    return network.eval()


def load_teacher(spec, store, dataset):
    """The teacher's network, after its files were checked and it was found to fit."""
    try:
        run = store.load(spec.teacher)
    except RunMissing as missing:
        what = f"{spec.name} (run {spec.run_id}) cannot learn from {spec.teacher}"
        raise RunMissing(f"{what}: {missing}") from None
    if run.spec.dataset_digest != spec.dataset_digest:
        own, other = (
            f"{each.dataset} ({each.dataset_digest[:8]}, {datasets.facts(each.dataset)})"
            for each in (spec, run.spec)
        )
        both = f"teacher {run.run_id} learned {other}, its student {spec.run_id} would learn {own}"
        raise ValueError(f"{both}; both need the same classes, image size and images")
    return network_of(run, dataset)
