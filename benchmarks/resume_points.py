"""What the resume point of an epoch costs, for the network of the digits profile: median milliseconds of each part."""

import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

from banlib import models, store, training
from banlib.recipe import PROFILES

ROUNDS = 50
torch.set_num_threads(1)
network = models.build(PROFILES["digits"].network, classes=10, in_channels=1, image_size=8)
optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
network(torch.zeros(2, 1, 8, 8)).sum().backward()
optimizer.step()
tensors = training.pack(network, optimizer)
raw = store.serialize(tensors, {})

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "resume"
    parts = {
        "collect the tensors": lambda: training.pack(network, optimizer),
        "serialise, by safetensors.torch": lambda: safetensors.torch.save(tensors),
        "serialise, by banlib.store": lambda: store.serialize(tensors, {}),
        "digest": lambda: hashlib.sha256(raw).hexdigest(),
        "write, sync, rename, sync": lambda: store.write_atomically(path, raw),
    }
    seconds = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - begun)
print(f"{len(tensors)} tensors, {len(raw):,} bytes")
for name, each in seconds.items():
    print(f"{1000 * statistics.median(each):8.3f} ms  {name}")
ours, theirs = (statistics.median(seconds[f"serialise, by {who}"]) for who in ("banlib.store", "safetensors.torch"))
print(f"{theirs / ours:8.2f}     times as fast as safetensors.torch")
