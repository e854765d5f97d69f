"""What the paper's tables and the clock say, in words, as `findings` does for lineages.

Clear means that a 95 % interval over seeds excludes zero.
"""

import pandas as pd

from banlib.paper import numbers, printed
from banlib.paper import statistics as st
from banlib.paper.findings import CONTROL, MISSING, ONE_SEED, listed, over, result, verbs
from banlib.paper.ledger import PAPER_SETTING, UNJUDGED
from banlib.paper.numbers import data

MANY = 5  # numbers are counted, fewer are listed
CLOSE = 1.5  # %, between two counts of parameters
UNLIKE = verbs(("does better than", "do better than"), ("does worse than", "do worse than"))
TEACHER = printed.row("DenseNetBC-90-60").errors["Baseline"]
TRIPLE = "the student", "the teacher", "the untaught network"
SPECIAL = {"MatchWideResNet-4-0.5": "half as wide", "MatchWideResNet-1-1": "with one unit a stage"}
OBJECTIVES = "teacher", "label+teacher, halved", "cwtm", "dkpp"  # at the scale of one loss
RIVALS = {
    "Teacher": "the teacher",
    "labels, restarted": "the same training on labels alone (`labels, restarted`)",
    st.CONTROL: f"twice the label loss ({CONTROL})",
}
REASONS = {  # how `why` begins where it speaks of a difference, and what that means
    "undecided": "with a difference from the reference that is not clear of zero",
    "the other sign": "with a clear difference of the other sign",
    "another effect": "with one so much larger than the paper's that it isn't the same effect",
    "the paper's sign": "with one much smaller than the paper's, or not clear beside the control",
}


def count(number, noun):
    return f"{data(number)} {noun}{'' if number == 1 else 's'}"


def fewer(share):
    return "fewer" if share > 0 else "more"


def ends(shared, own):
    """Students with ends of their own beside the same with the teacher's: of `ledger.by_seed`."""
    pairs = shared.merge(own, on=["network", "column", "seed"]).query("column == 'BAN'")
    rows = [
        {"name": f"`{network}` with ends of its own"}
        | st.difference(pair["error_y"] - pair["error_x"])
        for network, pair in pairs.groupby("network", sort=False)
    ]
    if not rows:
        return "No student of table 2 was trained here."
    start = over(*(row["seeds"] for row in rows))
    return f"{start}{result(rows, 'the same network with shared ends', UNLIKE)}."


def order(frame, gains):
    """Which of student, teacher and untaught student makes the fewest errors, by means."""
    rows = [name for name, part in gains.groupby("network", sort=False) if len(part) == 2]
    wins = {who: [0, 0] for who in TRIPLE}
    for name in rows:
        own, paper = frame[frame["network"] == name], printed.row(name).errors
        mean = own.groupby("column")["error"].mean()
        ours = mean["BAN"], own["reference"].mean(), mean["Baseline"]
        for place, errors in enumerate([(paper["BAN"], TEACHER, paper["Baseline"]), ours]):
            wins[min(zip(errors, TRIPLE, strict=True))[1]][place] += 1
    if not rows:
        return "None of the chosen rows has all three numbers, so there is no order to compare."
    told = (
        f"{who} {count(paper, 'time')} in the paper and {count(here, 'time')} here"
        for who, (paper, here) in wins.items()
    )
    text = f"Of {count(len(rows), 'row')}, the best of the three by mean error was {listed(told)}."
    for row in gains[gains["against"] == "teacher"].to_dict("records"):
        if what := SPECIAL.get(row["network"]):
            here = numbers.interval(abs(row["share"]), row["ci95"], 0, text=data)
            text += f" The student {what} makes {here} % {fewer(row['share'])} errors than its "
            text += f"teacher here; in the paper, {data(abs(row['paper_share']), 0)} % "
            text += f"{fewer(row['paper_share'])}."
    return f"{text} {MISSING}"


def verdicts(errors):
    """A row for each objective: on how many of the paper's networks it gains, and whether here.

    errors: `statistics.errors` of the teacher, of each of OBJECTIVES and of the control.
    """
    later = pd.DataFrame(printed.LATER_OBJECTIVES).T
    gains = later.lt(later["label"], axis=0).sum()
    table = pd.DataFrame({"objective": OBJECTIVES})
    names = table["objective"].str.removesuffix(", halved")
    table["improves in the paper"] = [f"{gains[name]} of {len(later)} networks" for name in names]
    for rival in RIVALS:
        rows = {row["name"]: row for row in st.paired(errors, rival).to_dict("records")}
        table[f"here, beside {rival}"] = [st.word(rows[name]) for name in OBJECTIVES]
    return table


def objectives(errors):
    """Which objectives clearly improve here, in a sentence; errors: as for `verdicts`."""
    if errors["seed"].nunique() < 2:
        return ONE_SEED
    table, told = verdicts(errors), []
    for rival, words in RIVALS.items():
        better = table.loc[table[f"here, beside {rival}"] == "better", "objective"]
        names = listed([f"`{name}`" for name in better] or ["no objective"])
        told.append(f"{names} clearly beat{'s' if len(better) < 2 else ''} {words}")
    return f"Of the four objectives, at the scale of one loss: {'; '.join(told)}."


def ranking(errors):
    """The order of the objectives, and whether first and last can be told apart."""
    means = errors.groupby("name")["error"].mean()
    order = means[list(OBJECTIVES)].sort_values()
    told = listed(f"`{name}` ({data(mean)} %)" for name, mean in order.items())
    rows = st.paired(errors, order.index[-1]).to_dict("records")
    ends = [row | {"name": "the first"} for row in rows if row["name"] == order.index[0]]
    return (
        f"By mean test error the order is {told}; their teacher has {data(means['Teacher'])} %. "
        f"{over(ends[0]['seeds'])}{result(ends, 'the last')}. {objectives(errors)}"
    )


def taught(gains):
    """By name: students that are clearly better or worse than themselves untaught."""
    part, told = gains[gains["against"] == "labels alone"], []
    if part.empty:
        return "No student was compared with its own network trained on labels alone."
    if part["seeds"].max() < 2:
        return f"{ONE_SEED} {MISSING}"
    for sign in (1, -1):
        clear = [row for row in part.itertuples() if st.clear(row.share, row.ci95)]
        names = [f"`{row.network}`" for row in clear if sign * row.share > 0]
        told.append(listed(names or ["none of these networks"]))
    text = f"Being taught clearly lowers the error of {told[0]} and raises that of {told[1]}"
    return f"{text}. {MISSING}"


def networks(audit):
    """How many parameter counts agree, of `printed.audit`."""
    apart = audit[audit["difference"].abs() >= CLOSE]
    text = f"{data(len(audit) - len(apart))} of {count(len(audit), 'network')} have the paper's "
    text += f"number of parameters to within {CLOSE:g} %."
    told = [
        f"`{row['name']}` has {data(row['params'] / 1e6)} million where the paper has "
        f"{row['params_printed']:g}"
        for row in apart.to_dict("records")
    ]
    return f"{text} The others: {listed(told)}." if told else text


def limits(board):
    """What the counts of a `ledger` cannot say."""
    texts = []
    if not (board["profile"] == PAPER_SETTING).any():
        texts.append(
            "Nothing was measured with the paper's own networks and recipe, so no value can be "
            "reproduced yet: what is tested is whether the claimed improvements show elsewhere."
        )
    taught = board[(board["column"] != "Baseline") & board["profile"].notna()]
    if lacking := int(taught["control_gain"].isna().sum()):
        texts.append(
            f"For {data(lacking)} of {count(len(taught), 'student')} and ensembles there is no "
            f"comparison with the control {CONTROL}: a longer step alone may explain their gains."
        )
    return " ".join(texts)


def missed(board):
    """Why numbers of a `ledger` did not hold up, and which could not be judged."""
    why = board.loc[board["verdict"] == "not", "why"]
    if board["profile"].isna().all():
        return "Nothing has been measured yet, so nothing could fail."
    known = {start: int(why.str.contains(rf"(?:^|; ){start}").sum()) for start in REASONS}
    told = [f"{data(number)} {REASONS[start]}" for start, number in known.items() if number]
    text = f"{count(len(why), 'number')} did not hold up{f': {listed(told)}' if told else ''}."
    for reason, group in board[board["verdict"].isin(UNJUDGED)].groupby("why", sort=False):
        cells = [f"`{row.network}` `{row.column}`" for row in group.itertuples()]
        cells = cells if len(cells) < MANY else [count(len(cells), "number")]
        text += f" No verdict for {listed(cells)}: {reason}."
    return text


def signs(board):
    """How many of the paper's differences have its sign here, are clear, and are reproduced."""
    known = board.dropna(subset=["share"])
    if known.empty:
        return "Nothing was measured that has a reference, so your guess can't be checked yet."
    same = known[known["share"] * known["paper_share"] > 0]
    pairs = zip(same["improvement"], same["improvement_ci95"], strict=True)
    clear = [st.clear(*pair) for pair in pairs]
    done = int((board["verdict"] == "reproduced").sum())
    return (
        f"Of {count(len(known), 'difference')} from a reference, {data(len(same))} have the "
        f"paper's sign here, and {data(sum(clear))} of these are clear of zero. "
        f"{count(done, 'number')} {'counts' if done == 1 else 'count'} as reproduced."
    )


def campaign(rows):
    """How much of the planned evidence there is, of `runs.campaign.run`."""
    told = []
    for row in rows:
        several = "seeds" if len(row["seeds"]) > 1 else "seed"
        seeds = f" (all of {several} {listed(row['seeds'])})" if row["seeds"] else ""
        told.append(f"`{row['step']}` {data(row['finished'])} of {data(row['runs'])}{seeds}")
    text = f"Of the networks planned, these are finished, by step of the plan: {listed(told)}."
    return f"{text} `banlib campaign` trains the others, in this order."


def speedup(result):
    """How many times as fast as the usual loop, of a measurement of `benchmarks/loop.py`."""
    kinds, told = {"plain": "on labels alone", "distill_remembered": "with a teacher"}, []
    for name, words in kinds.items():
        low, high = map(data, result["ratio_range"][name])
        ratio = data(result["ratio_to_usual_loop"][name])
        told.append(f"{ratio} times as fast {words} ({low} to {high} over the rounds)")
    where = f"On {result['hardware']} and in {result['precision']}"
    return f"{where}, this book's loop is {listed(told)}."


def predictions(results):
    """What was expected of the loop's speed before it was measured: what, predicted, measured."""
    best = max(results, key=lambda result: result["images_per_second"]["plain"])
    ratios, extra = best["ratio_to_usual_loop"], best["distill_over_plain"]
    rows = [
        ("labels alone, times the usual loop", 2.8, ratios["plain"]),
        ("with a teacher, times the usual loop, at least", 3.0, ratios["distill_remembered"]),
        ("online teacher over a plain step, at most", 1.37, extra["distill_online"]["median"]),
        ("first student over a plain step, at most", 1.16, extra["distill_remembered"]["median"]),
        ("later student over a plain step, at most", 1.03, extra["distill_later"]["median"]),
    ]
    for each in (each for each in results if each["precision"] == "fp32"):
        measured = each["ratio_to_usual_loop"]["distill_remembered"]
        rows.append(("with a teacher in float32, times the usual loop, at least", 1.4, measured))
    return pd.DataFrame(rows, columns=["what", "predicted", "measured"])


def held(table):
    """How many `predictions` held, and which did not."""
    most = table["what"].str.endswith("at most")
    right = (table["measured"] - table["predicted"]) * (1 - 2 * most) >= 0
    missed = table["what"][~right].tolist()
    text = f"{data(int(right.sum()))} of {count(len(table), 'prediction')} held."
    return f"{text} Missed: {'; '.join(missed)}." if missed else text


def workers(rows):
    """How far more workers help: rows of `cost.makespans`."""
    first, last = rows[0], rows[-1]
    times = data(first["seconds"] / last["seconds"], 1)
    return (
        f"{count(last['workers'], 'worker')} finish the plan {times} times as fast as "
        f"{data(first['workers'])}, and are idle for {data(last['idle'], 0)} % of the time."
    )


def scale(result, share, rows):
    """The outcome of chapter 6's guesses. share: of answers that a teacher is asked for."""
    text = (
        f"Over two hundred epochs, {data(100 * (1 - share), 0)} % of what a teacher is asked it "
        "has answered before. Four lineages are four chains, so sixteen GPUs finish no sooner than "
        f"four do, four times as fast as one. For the paper's table 1: {workers(rows)}"
    )
    if result is None:
        return text
    extra = 100 * (result["distill_over_plain"]["distill_online"]["median"] - 1)
    return f"Asking a teacher about every batch made training {data(extra, 0)} % longer. {text}"
