"""How fast training and distilling are, beside the loop that people write: variants take turns on
one network, batch and data. A call that was stopped goes on after its last finished round."""

import json
import statistics
import time

import click
import pandas as pd
from case import MOST_STEPS, RECIPE, Case
from ceilings import ceilings
from ours import fill, ours
from rounds import LIMIT, Rounds, ratio, record, tell, timed
from usual import usual

from banlib import teachers
from banlib.runs.accelerate import NAMES

ROUNDS, FEWEST_STEPS = 5, 2  # steps of a turn
AGAINST = {
    "plain": "usual",
    "distill_online": "usual_teacher",
    "distill_remembered": "usual_teacher",
    "distill_later": "usual_teacher",
}


def loop(network="DenseNetBC-40-12", device="auto", batch=128, say=tell, **how):
    """The usual loop and ours, plain and distilling: a dict that JSON can hold.

    ratio_to_usual_loop: how many times as fast as the usual loop each of ours is, the median over
    rounds, and ratio_range, the lowest and the highest round. "plain" is compared with the usual
    loop without a teacher, the others with the one that has it. "distill_remembered" is a teacher's
    first student over the recipe's epochs: `teachers.share` of its answers are asked for, in large
    batches, at the cost of the variant "fill"; "students" has a later student, too, whose teacher
    has answered everything. seconds: of each turn of `images` images, {variant: [each round]}.
    how: precision and accelerate, of our loop. Raises BadInput as `Case`.
    """
    case = Case(network, device, batch, **how)
    rounds = Rounds("loop", case, ROUNDS, say)
    turns, first, step = begun(variants(case), case, say)
    wanted = int(LIMIT / 1.2 / ROUNDS / sum(step.values()))
    steps = rounds.steps(max(FEWEST_STEPS, min(MOST_STEPS, wanted)))
    images = steps * case.batch
    rounds.measure({name: (turn, images) for name, turn in turns.items()})
    result = case.described() | {"steps": steps, "images": images}
    result |= compared(rounds.seconds, images, teachers.share(RECIPE.epochs, case.images.count))
    result["seconds_to_first_step"] = {name: round(each, 2) for name, each in first.items()}
    result["peak_memory_mib"] = {
        name: max(each) and round(max(each) / 2**20) for name, each in rounds.peaks.items()
    }
    result["ceilings"] = ceilings(case, result["images_per_second"]["plain"])
    rounds.forget()
    return result


def variants(case):
    """{name: function that makes its turn}."""
    made = {
        "usual": lambda: usual(case, taught=False),
        "usual_teacher": lambda: usual(case, taught=True),
        "plain": lambda: ours(case, None),
        "distill_online": lambda: ours(case, "online"),
        "distill_later": lambda: ours(case, "answered"),
        "fill": lambda: fill(case),
    }
    if case.device.type == "cuda":
        made["usual_autocast"] = lambda: usual(case, False, case.autocast)
        made["usual_teacher_autocast"] = lambda: usual(case, True, case.autocast)
    return made


def begun(variants, case, say):
    """(turns, seconds to the end of the first step, seconds of the second), each by variant."""
    turns, first, step = {}, {}, {}
    for name, make in variants.items():
        start = time.perf_counter()
        turns[name] = make()
        timed(turns[name], case.batch, case.device)
        first[name] = time.perf_counter() - start
        step[name] = timed(turns[name], case.batch, case.device)[0]
        say(f"{name}: first step after {first[name]:.1f} s, the second took {step[name]:.2f} s")
    return turns, first, step


def compared(seconds, images, share):
    """What follows from the seconds of each round; share: of the answers that are asked for."""
    parts = zip(seconds["distill_later"], seconds["fill"], strict=True)
    remembered = {"distill_remembered": [later + share * asked for later, asked in parts]}
    seconds = seconds | remembered
    ratios = {mine: ratio(seconds[theirs], seconds[mine]) for mine, theirs in AGAINST.items()}
    main, students = list(AGAINST)[:3], {"first": "distill_remembered", "later": "distill_later"}
    result = {
        "rounds": len(seconds["usual"]),
        "ratio_to_usual_loop": {name: ratios[name]["median"] for name in main},
        "ratio_range": {name: ratios[name]["range"] for name in main},
        "students": {who: ratios[name] for who, name in students.items()} | {"share_asked": share},
        "distill_over_plain": {
            name: ratio(seconds[name], seconds["plain"]) for name in list(AGAINST)[1:]
        },
        "images_per_second": {
            name: round(images / statistics.median(each), 1) for name, each in seconds.items()
        },
        "seconds": seconds,
    }
    if "usual_autocast" in seconds:
        result["ratio_to_usual_loop_autocast"] = {
            mine: ratio(seconds[f"{theirs}_autocast"], seconds[mine])["median"]
            for mine, theirs in AGAINST.items()
        }
    return result


def table(result):
    ranges = pd.DataFrame(result["ratio_range"], ["lowest", "highest"]).T
    columns = {
        "images/s": result["images_per_second"],
        "times the usual loop": result["ratio_to_usual_loop"],
        **ranges,
        "first step, s": result["seconds_to_first_step"],
        "peak MiB": result["peak_memory_mib"],
    }
    return pd.DataFrame(columns).reindex(list(result["images_per_second"]))


@click.command()
@click.option("--network", default="", help="Default: DenseNetBC-40-12; with --scaling -22-12.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--batch", default="128", show_default=True, help="Images in a batch.")
@click.option("--precision", default="auto", show_default=True, help="auto, bf16, fp32: of ours.")
@click.option("--accelerate", default="", help=f"Any of {','.join(NAMES)}: of our loop.")
@click.option("--scaling", is_flag=True, help="Follow our cost along depth, growth and others.")
@click.option("--record", "keep", is_flag=True, help="Keep it in results/benchmarks/.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone on standard output.")
def main(network, accelerate, scaling, keep, as_json, **how):
    """The usual loop (DataLoader, torchvision, float32, online teacher) and ours take turns; under
    ten minutes.

    Stopped, the same command goes on after its last finished round. Compare ratios: whatever else
    runs here slows all.

    \b
    JSON: ratio_to_usual_loop {plain, distill_online, distill_remembered} and ratio_range {name:
          [lowest, highest]} over the rounds, images_per_second, peak_memory_mib,
          seconds_to_first_step, students {first, later}, ceilings; with --scaling:
          points [{axis, value, plain, later, fill: seconds for each image}], share_asked
          {epochs: share}, chain {epochs, views, plain, students, generations: seconds for each
          image and epoch}
    """
    import scaling as along

    how["accelerate"] = [name for name in accelerate.split(",") if name]
    how |= {"network": network} if network else {}
    try:
        result = along.scaling(**how) if scaling else loop(**how)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if keep:
        tell(record(result, "scaling" if scaling else "loop"))
    if as_json:
        return click.echo(json.dumps(result, indent=1, allow_nan=False))
    click.echo("{network}, batch {batch}, {data}, {hardware}, {numerics}".format(**result))
    for part in along.tables(result) if scaling else [table(result)]:
        click.echo(part.to_string(na_rep="-", float_format="{:,.2f}".format))


if __name__ == "__main__":
    main()
