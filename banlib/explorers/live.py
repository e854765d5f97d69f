"""Live training: a small lineage raised by a child process, watched through the store's files.

The child reads its orders from a pipe and leaves when that closes, so it doesn't outlive a kernel.
"""

import asyncio
import contextlib
import math
import sys
import threading
from functools import partial

from banlib.explorers.explorer import Explorer, Widget
from banlib.explorers.stills import colors, picture
from banlib.figures.generations import lineage_diagram
from banlib.runs.engines import Plan, Worker, attend
from banlib.runs.lineage import plan
from banlib.runs.parameters import check_parameters
from banlib.runs.recipe import BadInput
from banlib.runs.store import Store
from banlib.runs.work import read_metrics

SECONDS = 0.5  # between two looks at the store
# A worker that notes its epochs often enough to be watched.
CODE = f"from banlib.runs import engines, fit; fit.SAVE_SECONDS = {SECONDS}; engines.serve()"
CAPTION = "Raise a lineage on the digits and watch it learn: start, stop, go on."
HOW = "<p>Training needs a kernel: open this chapter in Jupyter and run this cell.</p>"
ALT = "The teacher learns from labels; each student also learns from the generation before it."


class Lineage(Widget):
    """It obeys {"do": "start", "seed": 3} and {"do": "stop"}; its data hold what was noted.

    One trains at a time: whoever runs the cell again gets a new one, and the old one stops.
    """

    current = None

    def __init__(self, settings, store, **traits):
        super().__init__(**traits)
        self.settings, self.store, self.watcher = settings, store or Store(), None
        self.on_msg(lambda widget, message, buffers: self.obey(**message))
        if Lineage.current:
            Lineage.current.obey("stop")
        Lineage.current = self

    def obey(self, do, seed=None):
        running = self.watcher and not self.watcher.done()
        if do == "stop" and running:
            self.plan.until = -math.inf
            self.worker.stop()
        elif do == "start" and not running:
            self.watcher = asyncio.ensure_future(self.train(seed))

    async def train(self, seed):
        try:
            settings = check_parameters("digits", self.settings.network, self.settings.gens, [seed])
        except BadInput as error:
            return self.show("failed", [], str(error))
        [specs] = plan(self.settings._replace(seeds=settings.seeds)).values()
        missing = [spec for spec in specs if self.store.status(spec.run_id) != "finished"]
        self.plan = Plan({spec.run_id: spec for spec in missing})
        self.worker = Worker(self.store, {"OMP_NUM_THREADS": "1"}, "cpu", 1, {})
        self.worker.command = [sys.executable, "-c", CODE]
        work = self.plan, partial(self.worker.train, math.inf)
        thread = threading.Thread(target=attend, args=work, daemon=True)
        thread.start()
        while thread.is_alive():
            self.show("stopping" if self.plan.until < 0 else "training", specs)
            await asyncio.sleep(SECONDS)
        self.worker.close()
        failures = "; ".join(self.plan.failures.values())
        if self.plan.until < 0:  # the worker's last words are no failure then
            self.show("stopped", specs)
        else:
            self.show("failed" if failures else "finished", specs, failures)

    def show(self, status, specs, note=""):
        runs = [{"name": spec.name, "rows": self.rows(spec.run_id)} for spec in specs]
        self.data = self.data | {"status": status, "note": note, "runs": runs}

    def rows(self, run_id):
        """[epoch, training loss, test error] of each epoch noted so far."""
        for folder in (self.store.root, self.store.root / "live"):
            with contextlib.suppress(OSError):
                rows = read_metrics(folder / run_id / "metrics.jsonl")
                return [[row["epoch"], row["train_loss"], row["test_error"]] for row in rows]
        return []


def live_training(number=None, network="DenseNetBC-10-4", gens=2, store=None):
    """Raise a small lineage on the digits and watch it; with a kernel, so in Jupyter alone."""
    settings = check_parameters("digits", network, gens, 1)
    recipe = settings.profile.recipe.but(test_every=1)
    settings = settings._replace(profile=settings.profile._replace(recipe=recipe))
    names = ["Teacher", *(f"BAN-{k}" for k in range(1, gens + 1))]
    data = {"status": "new", "note": "", "seed": 100, "epochs": recipe.epochs, "runs": []}
    still = picture(lineage_diagram(gens), ALT) + HOW
    explorer = Explorer("live_training", number, data | {"colors": colors(names)}, still, CAPTION)
    explorer.widget_class = partial(Lineage, settings, store)
    return explorer
