"""Explorers: figures that a reader plays with, on the rendered page as in Jupyter.

Each function returns an `Explorer`, which shows itself as the last expression of a cell. number:
the figure's ("2.3"); caption, alt, source: text; alt describes the static picture.
"""

from banlib import ensemble as metrics
from banlib.explorers import data, stills
from banlib.explorers.explorer import Explorer as Explorable
from banlib.explorers.explorer import page_script
from banlib.explorers.frames import Explorer
from banlib.explorers.live import Training
from banlib.teachers import share

__all__ = ["Explorer", "page_script"]
LEDGER = ("table", "network", "column", "paper", "dataset", "measured", "verdict")


def generations(number, several, caption, alt, source="", controls=None):
    """Test error by generation, ours beside the paper's (chapter 2).

    several: `Lineages`, the first is shown first; controls: its {name: {seed: Run}}.
    """
    facts = data.generations(several, controls or {})
    still = stills.picture(stills.generations(facts), alt)
    return Explorable("generations", number, facts, still, caption, source)


def ensemble(number, lineages, caption, alt, source=""):
    """Build an ensemble from a lineage's runs; its metrics are computed in the browser.

    As many seeds and test images as a page can carry; the caption says which.
    """
    facts, scope = data.built(lineages)
    seed, chain = next(iter(lineages.runs.items()))
    voices = {run.spec.name: run.probabilities for run in chain}
    voices["ensemble"] = metrics.average([run.probabilities for run in chain[1:] or chain])
    count, labels = facts["images"], lineages.labels()[: facts["images"]]
    errors = {name: metrics.error(each[:count], labels) for name, each in voices.items()}
    still = stills.picture(stills.ensemble(errors, facts["colors"]), alt)
    return Explorable("ensemble", number, facts, still, f"{caption} {scope}", source)


def dark_knowledge(number, chain, dataset, caption, alt, source=""):
    """Walk through test images and what each run of a lineage says of them, at any temperature.

    chain: [teacher, BAN-1, ...], `lineages.runs[seed]`; dataset: `datasets.load`'s.
    """
    facts, scope = data.walk(chain, dataset)
    image, classes = facts["image"][0], facts["classes"]
    still = stills.picture(stills.dark_knowledge(chain, classes, image, facts["colors"]), alt)
    return Explorable("dark_knowledge", number, facts, still, f"{caption} {scope}", source)


def loss(number, caption, alt, source="", teacher=(2.0, 1.0, -1.0), student=(1.0, 0.2, 0.2)):
    """The gradient of eq. 3 with respect to the student's logits; class 0 is the label."""
    facts = {"teacher": list(teacher), "student": list(student), "label": 0}
    facts["colors"] = data.colors(["Teacher", "BAN-1"])
    still = stills.picture(stills.loss(teacher, student, 0), alt)
    return Explorable("loss", number, facts, still, caption, source)


def cost(number, result, views, caption, alt, source="", epochs=200, students=3):
    """What a student costs whose teacher is asked online, or remembers its answers.

    result: a "loop" measurement of `figures.speed.measurements`; views: of each training image.
    """
    names = {"plain": "plain", "later": "distill_later", "online": "distill_online"}
    speeds = result["images_per_second"]
    facts = {name: 1 / speeds[key] for name, key in (names | {"answer": "fill"}).items()}
    facts |= {"views": views, "epochs": epochs, "students": students}
    facts["colors"] = data.colors(["Teacher", "BAN-1"])
    asked = share(epochs, views) / students * facts["answer"]
    times = {"labels alone": facts["plain"], "teacher online": facts["online"]}
    times["teacher remembers"] = facts["later"] + asked
    units = {name: value / facts["plain"] for name, value in times.items()}
    title = "time of one student"
    shades = {title: facts["colors"]["BAN-1"]}
    still = stills.picture(stills.bars({title: units}, shades, "in plain training runs"), alt)
    return Explorable("cost", number, facts, still, caption, source)


def ledger(number, board, caption, alt, source=""):
    """All cells of `ledger.ledger`: sort, filter, and open a row for the rest of its columns."""
    facts = {"rows": data.rows(board), "columns": list(LEDGER), "label": alt}
    still = stills.table(
        LEDGER, [[stills.text(row[name]) for name in LEDGER] for row in facts["rows"]]
    )
    return Explorable("ledger", number, facts, still, caption, source)


def live_training(number="2.0", network="DenseNetBC-10-4", gens=2, store=None):
    """Raise a small lineage and watch it; in Jupyter alone, where there is a kernel to train."""
    return Training(number, network, gens, store)
