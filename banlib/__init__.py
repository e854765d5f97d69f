"""Born Again Networks: a network is trained by a network of its own kind, again and again.

The subject, for which torch is enough:
    build           a network by name (`models`)
    objective_loss  what a student is trained on, eqs. 1-3 (`objectives`)
    Augmented       images on the device, their crops and flips by number (`views`)
    online          a teacher that is asked about every batch (`teachers`)
    born_again      the paper: the student becomes the teacher, again (`loop`)
    train_epoch     one pass over the training images (`loop`)
    predict         logits of test images (`loop`)
    average         an ensemble's probabilities, eq. 4 (`ensemble`)
Around it, `runs` makes an experiment of it, `paper` has the tables and the statistics, `figures`
and `explorers` show them, `book` runs the chapters, `cli` is the command line.
"""

import importlib

HOMES = {"build": "models", "objective_loss": "objectives", "Augmented": "views"}
HOMES |= {"online": "teachers", "average": "ensemble"}
HOMES |= dict.fromkeys(("train_epoch", "born_again", "predict"), "loop")
__all__ = list(HOMES)


def __getattr__(name):  # torch takes a second, and not everybody who imports banlib needs it
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"banlib.{HOMES[name]}"), name)
