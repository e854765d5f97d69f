"""Live training: a small lineage raised by a child process, watched through the store's files.

The child reads its orders from a pipe and leaves when that closes, so it never outlives the kernel.
"""

import asyncio
import contextlib
import math
import sys
import threading
from functools import partial

from banlib.explorers import stills
from banlib.explorers.data import colors
from banlib.explorers.explorer import Explorer, Widget
from banlib.figures.generations import lineage_diagram
from banlib.runs.engines import Plan, Worker, attend
from banlib.runs.lineage import plan
from banlib.runs.parameters import check_parameters
from banlib.runs.store import Store
from banlib.runs.work import read_metrics

SECONDS = 0.5  # between two looks at the store
# A worker that notes its epochs often enough to be watched.
CODE = f"from banlib.runs import engines, fit; fit.SAVE_SECONDS = {SECONDS}; engines.serve()"
CAPTION = (
    "Raise a lineage and watch it learn. Training needs a kernel: open this chapter in Jupyter "
)
CAPTION += "and run this cell."
ALT = "The teacher learns from labels; each student also learns from the generation before it."


class Lineage(Widget):
    """Its data hold status, note and rows of runs; it obeys {"do": "start", "seed"} and "stop"."""

    def __init__(self, settings, store, **traits):
        super().__init__(**traits)
        self.settings, self.store, self.thread = settings, store, None
        self.on_msg(lambda _, message, __: self.obey(message))

    def obey(self, message):
        if message["do"] == "stop" and self.thread:
            self.plan.until = -math.inf
            self.worker.stop()
        elif message["do"] == "start" and not self.thread:
            seeds = (int(message["seed"]),)
            self.specs = plan(self.settings._replace(seeds=seeds))[seeds[0]]
            missing = [s for s in self.specs if self.store.status(s.run_id) != "finished"]
            self.plan = Plan({spec.run_id: spec for spec in missing})
            self.worker = Worker(self.store, {"OMP_NUM_THREADS": "1"}, "cpu", 1, {})
            self.worker.command = [sys.executable, "-c", CODE]
            train = partial(self.worker.train, math.inf)
            self.thread = threading.Thread(target=attend, args=(self.plan, train), daemon=True)
            self.thread.start()
            self.watcher = asyncio.ensure_future(self.watch())

    async def watch(self):
        while self.thread.is_alive():
            self.show("training")
            await asyncio.sleep(SECONDS)
        self.worker.close()
        self.thread = None
        failures = "; ".join(self.plan.failures.values())
        left = len(self.plan.done) < len(self.plan.missing)
        self.show("failed" if failures else "stopped" if left else "finished", failures)

    def show(self, status, note=""):
        runs = [{"name": spec.name, "rows": self.rows(spec)} for spec in self.specs]
        self.data = self.data | {"status": status, "note": note, "runs": runs}

    def rows(self, spec):
        """[epoch, training loss, test error] of each epoch noted so far."""
        for folder in (self.store.root, self.store.root / "live"):
            with contextlib.suppress(OSError):
                rows = read_metrics(folder / spec.run_id / "metrics.jsonl")
                return [[r["epoch"], r["train_loss"], r.get("test_error")] for r in rows]
        return []


class Training(Explorer):
    def __init__(self, number, network, gens, store):
        settings = check_parameters("digits", network, gens, 1)
        recipe = settings.profile.recipe.model_copy(update={"test_every": 1})
        self.settings = settings._replace(profile=settings.profile._replace(recipe=recipe))
        self.store = store or Store()
        data = {"status": "new", "note": "", "seed": 100, "epochs": recipe.epochs, "runs": []}
        names = ["Teacher", *(f"BAN-{k}" for k in range(1, gens + 1))]
        data |= {"network": settings.network, "colors": colors(names)}
        still = stills.picture(lineage_diagram(gens), ALT)
        super().__init__("live_training", number, data, still, CAPTION)

    def widget_class(self, **traits):
        return Lineage(self.settings, self.store, **traits)
