"""Weights that were trained elsewhere, as a finished run that can teach."""

import contextlib
import hashlib
import math
from pathlib import Path

import torch

from banlib.runs import datasets, machine, work
from banlib.runs.fit import tested
from banlib.runs.networks import difference, new_network
from banlib.runs.parameters import check_network
from banlib.runs.recipe import ELSEWHERE, BadInput, RunSpec
from banlib.runs.store import Store
from banlib.views import Augmented


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
    except Exception as error:  # torch and its unpickler raise a dozen kinds at other files
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadInput(f"{path} holds no state dict that can be read safely ({first})") from None
