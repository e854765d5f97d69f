"""Networks from what is stored: of a spec, a finished run, a resume point, a state dict."""

import contextlib
import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from banlib import loop, models
from banlib.runs import datasets, machine, work
from banlib.runs.parameters import check_network
from banlib.runs.recipe import ELSEWHERE, BadInput, RunSpec
from banlib.runs.store import RunMissing, Store
from banlib.views import Augmented


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
    expected |= {f"momentum.{name}": momentum[name] for name in momentum}
    if misfit := difference(tensors, expected):
        what = f"the resume point is refused: {misfit}"
        raise work.RunDamaged(f"{what}; `banlib runs rm` starts the run over")
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
        form = "{0.dataset} ({0.dataset_digest:.8}, {1})".format
        own, other = (form(each, datasets.facts(each.dataset)) for each in (spec, run.spec))
        both = f"teacher {run.run_id} learned {other}, its student {spec.run_id} would learn {own}"
        raise ValueError(f"{both}; both need the same classes, image size and images")
    return network_of(run, dataset)


def tested(network, images, labels, autocast):
    """(probabilities float16 [n, classes] on the CPU, error in %, loss in nats) of test images.

    The error is that of the rounded probabilities: who reads them later finds the same.
    """
    logits = loop.predict(network, images, autocast)
    probabilities = logits.softmax(1).half()
    error = 100 * (probabilities.argmax(1) != labels).double().mean().item()
    return probabilities.cpu(), error, F.cross_entropy(logits, labels).item()


def adopt(path, network, dataset, store=None):
    """The `store.Run` of a network's state dict in a file, tested on the dataset's test images.

    path: of safetensors, or of `torch.save`, from which tensors alone are read: the names, shapes
    and types of `models.build(network)`. Its id is a hash of the weights, not of their file.
    Raises BadInput for what is no such state dict.
    """
    network, data, store = check_network(network), datasets.load(dataset), store or Store()
    weights, device = read(path), torch.device("cpu")
    digest = hashlib.sha256(work.packed(weights, {})).hexdigest()
    about = {"dataset": dataset, "dataset_digest": data.digest, "recipe": ELSEWHERE}
    spec = RunSpec(network=network, **about, seed=0, generation=0, imported=digest)
    student = new_network(spec, data)
    if misfit := difference(weights, student.state_dict()):
        raise BadInput(f"{path} does not fit {network} for {dataset}: {misfit}")
    student.load_state_dict(weights)
    images = Augmented(data.test, data.mean, data.std, 0, False, "reflect")
    with machine.own_settings("cpu"):
        part = student, images, data.test.labels, contextlib.nullcontext
        probabilities, error, nll = tested(*part)
    if not math.isfinite(nll):
        raise BadInput(f"{path} makes no network: its loss on the test images is {nll:g}")
    row = {"test_error": error, "test_nll": nll}
    results = row | {"params": sum(each.numel() for each in student.parameters())}
    environment = machine.describe(device, machine.Numerics("fp32")) | {"hardware": "elsewhere"}
    with store.claim(spec) as claimed:
        if not claimed.finished.exists():
            outputs = weights, probabilities, data.test.labels
            claimed.commit(results, [{"epoch": 0} | row], [environment], *outputs)
    return store.load(spec.run_id)


def read(path):
    """The state dict in a file. BadInput for anything else."""
    try:
        if Path(path).suffix == ".safetensors":
            return work.unpacked(Path(path).read_bytes())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach().clone() for name, tensor in weights.items()}
    except Exception:  # torch and its unpickler raise a dozen kinds at other files, and advise
        wanted = "expected safetensors, or tensors by name in a file of torch.save"
        raise BadInput(f"{path} holds no state dict that can be read safely; {wanted}") from None
