"""Explorers: figures that a reader plays with, on the rendered page as in Jupyter.

Each function returns an `Explorer`, which shows itself as the last expression of a cell. number:
the figure's, such as "2.3"; caption, alt, source: text; alt describes the static picture.
"""

import base64

import torch
from scipy import stats

from banlib import ensemble as metrics
from banlib.explorers.explorer import Explorer
from banlib.explorers.live import live_training
from banlib.explorers.stills import bars, colors
from banlib.paper import numbers, printed, statistics
from banlib.runs.recipe import PROFILES, generation_name
from banlib.teachers import share

__all__ = ["live_training"]
MOST_BYTES, MOST_IMAGES = 180_000, 200  # of probabilities and pictures in a page; to walk through
POWER = 3  # a probability p is the byte 255 p^(1/3): fine near 0, and 1/255^3 is 2^-24
LEDGER = ("table", "network", "column", "paper", "dataset", "measured", "verdict")


def encoded(values):
    """A tensor's bytes, little endian, as base64."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def generations(number, several, caption, alt, source="", controls=None):
    """Test error by generation, ours beside the paper's (chapter 2).

    several: `Lineages`, the first is shown first; controls: its {name: {seed: Run}}.
    """
    sets = [_errors(lineages) for lineages in several]
    for name, runs in (controls or {}).items():
        rows = [[seed, run.error, run.run_id] for seed, run in runs.items()]
        sets[0]["models"].append({"name": name, "generation": 1, "runs": rows})
    models = [model for one in sets for model in one["models"]]
    most = max(len(model["runs"]) for model in models)
    facts = {"sets": sets, "colors": colors(model["name"] for model in models)}
    facts["paper"] = [{"network": row.network, "errors": row.errors} for row in printed.TABLE1]
    facts["quantiles"] = [stats.t.ppf(0.975, count - 1) for count in range(2, most + 1)]
    ours = {model["name"]: [row[1] for row in model["runs"]] for model in sets[0]["models"]}
    still = bars(alt, {sets[0]["title"]: ours}, facts["colors"], "test error, %")
    return Explorer("generations", number, facts, still, caption, source)


def _errors(lineages):
    """{title, models: [{name, generation, runs: [[seed, error in %, run ids], ...]}, ...]}."""
    settings, found = lineages.settings, []
    models = {generation_name(k): (k,) for k in range(settings.gens + 1)}
    for name, members in (models | metrics.members(settings.gens)).items():
        chains = lineages.runs.items()
        runs = {seed: [c[k] for k in members] for seed, c in chains if len(c) > max(members)}
        ids = {seed: " + ".join(run.run_id for run in group) for seed, group in runs.items()}
        rows = [[seed, statistics.error_of(runs[seed]), ids[seed]] for seed in runs]
        found.append({"name": name, "generation": max(members), "runs": rows})
    title = f"{settings.network} on {settings.profile.dataset} ({settings.profile.name})"
    return {"title": title, "models": found}


def ensemble(number, lineages, caption, alt, source=""):
    """Build an ensemble from a lineage's runs; its metrics are computed in the browser (chapter 3).

    Of as many seeds and test images as a page can carry; the caption says which.
    """
    labels, chains = lineages.labels(), lineages.runs
    first = next(iter(chains.values()))
    classes, longest = first[0].probabilities.shape[1], max(map(len, chains.values()))
    seeds = list(chains)[: max(1, MOST_BYTES // (len(labels) * classes * longest))]
    count = min(len(labels), MOST_BYTES // (classes * longest * len(seeds)))
    runs = [(seed, run, run.probabilities[:count]) for seed in seeds for run in chains[seed]]
    members = [
        {"seed": seed, "generation": run.spec.generation, "name": run.spec.name, "run": run.run_id}
        | {"probabilities": encoded((255 * each.double() ** (1 / POWER)).round().byte())}
        for seed, run, each in runs
    ]
    facts = {"members": members, "labels": encoded(labels[:count].short()), "classes": classes}
    shades = colors([*(member["name"] for member in members), "ensemble"])
    voices = {run.spec.name: each for seed, run, each in runs if seed == seeds[0]}
    voices["ensemble"] = metrics.average(list(voices.values())[1:] or voices.values())
    errors = {name: metrics.error(each, labels[:count]) for name, each in voices.items()}
    still = bars(alt, {f"seed {seeds[0]}": errors}, shades, "test error, %")
    part = "" if count == len(labels) else f"the first {count:,} of "
    scope = f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} (of {len(chains)})"
    scope += f" and {part}{len(labels):,} test images. Probabilities are rounded to a byte, which "
    scope += "changes the class of two images and a calibration error by 0.5 points at most."
    facts |= {"power": POWER, "colors": shades}
    return Explorer("ensemble", number, facts, still, caption, source, scope)


def dark_knowledge(number, chain, dataset, caption, alt, source=""):
    """Walk through test images and what each run says of them, at any temperature (chapter 5).

    chain: [teacher, BAN-1, ...], `lineages.runs[seed]`; dataset: `datasets.load`'s.
    """
    labels, said = chain[0].labels, torch.stack([run.predicted for run in chain])
    doubt, pixels = metrics.entropy(chain[0].probabilities), dataset.test.images
    each = pixels[0].numel() + 4 * len(chain) * len(dataset.classes)
    order = (doubt + 100 * (said != said[0]).any(0)).argsort(descending=True)
    chosen = order[: min(MOST_IMAGES, MOST_BYTES // each)]
    chosen = chosen[doubt[chosen].argsort(descending=True)]
    given = torch.stack([run.probabilities[chosen].float() for run in chain], 1)
    facts = {"members": [{"name": run.spec.name, "run": run.run_id} for run in chain]}
    facts |= {"classes": list(map(str, dataset.classes)), "size": list(pixels.shape[1:])}
    facts |= {"image": chosen.tolist(), "label": labels[chosen].tolist()}
    facts |= {"predicted": said[:, chosen].T.tolist(), "pixels": encoded(pixels[chosen])}
    facts |= {"probabilities": encoded(given), "colors": colors(r.spec.name for r in chain)}
    likeliest = given[0, 0].argsort(descending=True)[:5].tolist()
    panels = {
        run.spec.name: {f"class {facts['classes'][c]}": values[c].item() for c in likeliest}
        for run, values in zip(chain, given[0], strict=True)
    }
    still = bars(alt, panels, facts["colors"], "probability", (0, 1), pixels[chosen[0]])
    scope = f"{len(chosen)} of {len(labels):,} test images: those on which networks disagree, "
    scope += "filled up with those of most doubt."
    return Explorer("dark_knowledge", number, facts, still, caption, source, scope)


def loss(number, caption, alt, source="", teacher=(2.0, 1.0, -1.0), student=(1.0, 0.2, 0.2)):
    """Eq. 3's gradient with respect to the student's logits; class 0 is the label (chapter 2)."""
    facts = {"teacher": list(teacher), "student": list(student), "label": 0}
    facts["colors"] = colors(["Teacher", "BAN-1"])
    p, q = (torch.tensor(logits).softmax(0) for logits in (teacher, student))
    terms = {"label: q \u2212 onehot": q - torch.eye(len(q))[0], "teacher: q \u2212 p": q - p}
    terms["sum"] = sum(terms.values())
    panels = {name: {f"class {c}": v.item() for c, v in enumerate(t)} for name, t in terms.items()}
    shades = dict(zip(list(terms)[1:], facts["colors"].values(), strict=True))
    still = bars(alt, panels, shades, "gradient of the student's logits", (-1, 1))
    return Explorer("loss", number, facts, still, caption, source)


def cost(number, result, views, caption, alt, source="", epochs=200, students=3):
    """What a student costs whose teacher is asked online, or remembers its answers (chapter 6).

    result: a "loop" measurement of `figures.speed.measurements`; views: of each training image.
    """
    names = {"plain": "plain", "later": "distill_later", "online": "distill_online"}
    names["answer"] = "fill"
    facts = {name: 1 / result["images_per_second"][key] for name, key in names.items()}
    asked, unit = share(epochs, views) / students * facts["answer"], facts["plain"]
    costs = {"labels alone": 1, "teacher online": facts["online"] / unit}
    costs["teacher remembers"] = (facts["later"] + asked) / unit
    facts |= {"views": views, "epochs": epochs, "students": students}
    facts["colors"] = shades = colors(["Teacher", "BAN-1"])
    shades = {"teacher online": shades["Teacher"], "teacher remembers": shades["BAN-1"]}
    title = f"{students} students of {epochs} epochs"
    still = bars(alt, {title: costs}, shades, "time of each, in plain training runs")
    return Explorer("cost", number, facts, still, caption, source)


def ledger(number, board, caption, alt, source=""):
    """All cells of `ledger.ledger`: sort, filter, and open a row for the rest (chapter 7)."""
    datasets = {name: profile.dataset for name, profile in PROFILES.items()}
    cells = board.assign(dataset=board["profile"].map(datasets)).astype(object)
    rows = cells.where(cells.notna(), None).to_dict("records")
    facts = {"rows": rows, "columns": list(LEDGER), "label": alt}
    shown = cells[list(LEDGER)].map(lambda v: v if isinstance(v, str) else numbers.number(v))
    still = f'<div class="ban-scroll">{shown.to_html(index=False, border=0)}</div>'
    return Explorer("ledger", number, facts, still, caption, source)
