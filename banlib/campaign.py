"""The evidence of `cifar100-lite`: what is trained for it, in the order in which it is useful.

The rate first. RULE is how it is chosen; it was written before the search was run.
"""

from banlib import lineage
from banlib.recipe import PROFILES, Settings
from banlib.store import Store

RULE = """\
The teacher's learning rate is chosen before any student is trained, on
images that the reported test set does not hold: the digits' development
images, or fifty training images of each class of CIFAR-100. Starting from
0.1, the paper's, the rate is doubled until the mean held-out error of the
last epoch is lower no more; the rate before that is taken. If 0.2 is no
better than 0.1, the rate is halved instead, likewise. Students inherit it."""

START = 0.1


def choose_rate(error_at):
    """(the rate by RULE, {rate: error} of all that were tried). error_at: rate -> mean held-out error, %."""
    tried = {START: error_at(START)}
    for factor in (2, 0.5):
        best = START
        while True:
            rate = best * factor
            tried[rate] = error_at(rate)
            if tried[rate] >= tried[best]:
                break
            best = rate
        if best != START:
            break
    return best, dict(sorted(tried.items()))


def search(profile, seeds, store=None, **how):
    """`choose_rate` for a profile, training what the store lacks."""
    store = store or Store()

    def error_at(rate):
        [specs] = lineage.rates(profile, [rate], seeds).values()
        if failures := lineage.train_missing(specs, store, threads=1, **how):
            raise RuntimeError("; ".join(failures))
        errors = [store.load(spec.run_id).results["test_error"] for spec in specs]
        print(f"{profile.name} rate {rate:g}: {sum(errors) / len(errors):.2f} % of {len(errors)} seeds", flush=True)
        return sum(errors) / len(errors)

    return choose_rate(error_at)
