"""What the explorers read: results as small plain data, and which part of them was taken."""

import base64

import torch
from matplotlib.colors import to_hex
from scipy import stats

from banlib import ensemble
from banlib.figures.style import color
from banlib.paper import printed, statistics
from banlib.runs.recipe import PROFILES

MOST_BYTES = 180_000  # of a page's JSON for probabilities or pictures: 240 kB of text
POWER = 3  # a probability p is the byte 255 p^(1/3): fine near 0, and 1/255^3 is 2^-24
MOST_IMAGES = 200  # to walk through


def encoded(values):
    """A tensor's bytes, little endian, as base64."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def quantized(probabilities):
    """uint8 of probabilities in 0..1, with a finer step near 0; the module divides by their sum."""
    return (255 * probabilities.double() ** (1 / POWER)).round().byte()


def generations(several, controls):
    """Errors of each seed with run ids, of several `Lineages`; the paper's; t quantiles."""
    sets = [_errors(lineages) for lineages in several]
    for name, runs in controls.items():
        rows = [[seed, run.error, run.run_id] for seed, run in runs.items()]
        sets[0]["models"].append({"name": name, "generation": 1, "runs": rows})
    names = {model["name"] for one in sets for model in one["models"]}
    most = max(len(model["runs"]) for one in sets for model in one["models"])
    paper = [{"network": row.network, "errors": _as_ours(row.errors)} for row in printed.TABLE1]
    quantiles = [stats.t.ppf(0.975, count - 1) for count in range(2, most + 1)]
    return {"sets": sets, "paper": paper, "quantiles": quantiles, "colors": colors(names)}


def _as_ours(errors):
    ours = {paper: own for own, paper in statistics.COLUMNS.items()}
    return {ours.get(name, name): error for name, error in errors.items() if error is not None}


def _errors(lineages):
    models = []
    members = ensemble.members(lineages.settings.gens)
    for name, group in statistics.errors(lineages).groupby("name", sort=False):
        generation, rows = int(group["generation"].iloc[0]), []
        for seed, error in zip(group["seed"], group["error"], strict=True):
            chain = lineages.runs[seed]
            ids = [chain[each].run_id for each in members.get(name, (generation,))]
            rows.append([int(seed), error, " + ".join(ids)])
        models.append({"name": name, "generation": generation, "runs": rows})
    settings = lineages.settings
    title = f"{settings.network} on {settings.profile.dataset} ({settings.profile.name})"
    return {"title": title, "images": len(lineages.labels()), "models": models}


def built(lineages):
    """(data, which part of them): probabilities of as many seeds and images as fit in a page."""
    labels, chains = lineages.labels(), lineages.runs
    classes = next(iter(chains.values()))[0].probabilities.shape[1]
    longest = max(map(len, chains.values()))
    seeds = list(chains)[: max(1, MOST_BYTES // (len(labels) * classes * longest))]
    images = min(len(labels), MOST_BYTES // (classes * longest * len(seeds)))
    members = [
        {"seed": seed, "generation": run.spec.generation, "name": run.spec.name}
        | {"run": run.run_id, "probabilities": encoded(quantized(run.probabilities[:images]))}
        for seed in seeds
        for run in chains[seed]
    ]
    labels = encoded(labels[:images].short())
    shape = {"images": images, "classes": classes, "labels": labels, "power": POWER}
    of_images = f"{images:,} test images"
    if images < len(lineages.labels()):
        of_images = f"the first {images:,} of {len(lineages.labels()):,} test images"
    scope = f"Seeds {', '.join(map(str, seeds))} of {len(chains)}, {of_images}."
    shades = colors([*(member["name"] for member in members), "ensemble"])
    return shape | {"members": members, "colors": shades}, scope


def colors(names):
    """{name: "#rrggbb"}, which a model keeps in every figure."""
    return {name: to_hex(color("Ens*3" if name == "ensemble" else name)) for name in names}


def walk(chain, dataset):
    """(data, which part): images and what each run of a lineage says of them, most doubted first.

    Those on which a student and its teacher part are never left out before others.
    """
    labels, said = chain[0].labels, torch.stack([run.predicted for run in chain])
    parted = (said != said[0]).any(0)
    doubt = ensemble.entropy(chain[0].probabilities)
    order = (doubt + 100 * parted).argsort(descending=True)
    pixels = dataset.test.images
    each = pixels[0].numel() + 4 * len(chain) * len(dataset.classes)
    chosen = order[: min(MOST_IMAGES, MOST_BYTES // each)]
    chosen = chosen[doubt[chosen].argsort(descending=True)]
    probabilities = torch.stack([run.probabilities[chosen].float() for run in chain], 1)
    members = [{"name": run.spec.name, "run": run.run_id} for run in chain]
    facts = {"classes": list(map(str, dataset.classes)), "members": members}
    facts |= {"image": chosen.tolist(), "label": labels[chosen].tolist()}
    facts |= {"predicted": said[:, chosen].T.tolist(), "size": list(pixels.shape[1:])}
    facts |= {"pixels": encoded(pixels[chosen]), "probabilities": encoded(probabilities)}
    scope = f"{len(chosen)} of {len(labels):,} test images, those first on which runs disagree."
    return facts | {"colors": colors(member["name"] for member in members)}, scope


def rows(board):
    """The ledger's cells: {column: value}, None where there is nothing; dataset: of measured."""
    datasets = {name: profile.dataset for name, profile in PROFILES.items()}
    table = board.assign(dataset=board["profile"].map(datasets)).astype(object)
    return table.where(table.notna(), None).to_dict("records")
