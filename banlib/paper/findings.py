"""What was found, in words: for each experiment a few sentences of Markdown, whatever came out.

Undecided means that the 95 % interval over seeds includes zero. No sentence says that a student
beats its teacher without the result of the control `labels x2` in it or in the next.
"""

import pandas as pd
from scipy import stats

from banlib.paper import numbers
from banlib.paper import statistics as st
from banlib.paper.ledger import UNJUDGED
from banlib.paper.numbers import data
from banlib.runs.recipe import PAPER

CONTROL = f"`{st.CONTROL}`"
RIVAL = f"the control {CONTROL}"
MISSING = f"The control {CONTROL} was not run, so no gain can be credited to the teacher's output."
ONE_SEED = "One seed gives no interval, so nothing here can be clear."
ANSWERS = ("better", "worse", "undecided", "one seed")  # of `statistics.word`


def verbs(better, worse, undecided="{} not clearly differ from"):
    """{answer: (singular, plural)}."""
    forms = {"better": better, "worse": worse, "one seed": ("differs from", "differ from")}
    return forms | {"undecided": (undecided.format("does"), undecided.format("do"))}


FEWER = verbs(("beats", "beat"), ("makes more errors than", "make more errors than"))
TRUST = verbs(
    ("is better calibrated than", "are better calibrated than"),
    ("is less well calibrated than", "are less well calibrated than"),
    "{} not clearly differ in calibration from",
)
LIKELY = verbs(
    ("has a better likelihood than", "have a better likelihood than"),
    ("has a worse likelihood than", "have a worse likelihood than"),
    "{} not clearly differ in likelihood from",
)
CONCLUSIONS = {  # (student against its teacher, student against the control)
    ("better", "better"): "So the teacher's output adds what a larger step on the labels does not",
    ("better", "undecided"): "So the larger step alone may explain the gain over the teacher",
    ("better", "worse"): "So the larger step alone more than explains the gain over the teacher",
    ("undecided", "better"): "So the teacher's output helps more than a larger step on the labels, "
    "but whether the student passes its teacher stays open",
    ("undecided", "undecided"): "So these seeds decide neither question",
    ("worse", "better"): "So the teacher's output helps more than a larger step on the labels, and "
    "still the student falls short of its teacher",
}
NOT_SHOWN = "So nothing here speaks for learning from the teacher's output"


def listed(names):
    """ "a, b and c"."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def over(*seeds):
    """The opening of a sentence about differences, each of so many seeds."""
    few, most = min(seeds), max(seeds)
    count = data(most) if few == most else f"{data(few)} to {data(most)}"
    several = f"Over {count} seeds (95 % intervals), "
    return several if most > 1 else "In one seed, which gives no interval, "


def result(rows, rival, words=FEWER, unit="points", noun="", digits=2):
    """Rows of `statistics.paired` in clauses, a clause for each answer.

    "BAN-2 beats BAN-1 by 0.50 ± 0.10 points; BAN-3 does not clearly differ from BAN-1 (+0.08 ± 0.56
    points)". words: `verbs`, of differences that are better if negative; noun: of which the rows'
    names are numbers.
    """
    clauses = []
    for answer in ANSWERS:
        if group := [row for row in rows if st.word(row) == answer]:
            clear, names = answer in ANSWERS[:2], listed(row["name"] for row in group) + noun
            sizes = []
            for row in group:
                size = abs(row["difference"]) if clear else row["difference"]
                sizes.append(numbers.interval(size, row["ci95"], digits, not clear, data))
            verb = words[answer][bool(noun) or len(group) > 1]
            size = f"{listed(sizes)} {unit}"
            clauses.append(f"{names} {verb} {rival} " + (f"by {size}" if clear else f"({size})"))
    return "; ".join(clauses)


def compared(errors, against, names=None, rival=None):
    """Models beside another of the same seeds; if that is the teacher, also beside the control.

    errors: `statistics.errors`, and `statistics.with_controls`; names: the models, by default all
    others; rival: what to call the other.
    """
    rows = [row for row in _pairs(errors, against) if row["name"] in (names or [row["name"]])]
    if not rows:
        return f"Nothing was compared with {rival or _called(against)} here."
    teacher = against == "Teacher"
    own = ("its teacher", "the teacher")[len(rows) > 1] if teacher else _called(against)
    called = [row | {"name": _called(row["name"])} for row in rows]
    text = f"{over(*(row['seeds'] for row in rows))}{result(called, rival or own)}."
    beside = [row["name"] for row in rows if row["name"] != st.CONTROL]
    if not (teacher and beside):
        return text
    if st.CONTROL not in set(errors["name"]):
        return f"{text} {MISSING}"
    return f"{text} {compared(errors, st.CONTROL, beside, RIVAL)}"


def _pairs(frame, against, column="error"):
    rows = st.paired(frame, against, column).to_dict("records")
    return [row for row in rows if row["seeds"]]


def _called(name):
    """As code: what would read as words of the sentence, and stars, which would be markup."""
    code = name[0].islower() or "*" in name
    return "the teacher" if name == "Teacher" else f"`{name}`" if code else name


def time(reading, *several):
    """A chapter's time box. reading: minutes or None; several: `Lineages`, or lists of runs."""
    lists = [each if isinstance(each, list) else sum(each.runs.values(), []) for each in several]
    runs = {run.run_id: run for each in lists for run in each}.values()
    words = f"Reading takes about {reading} minutes. " if reading else ""
    minutes = data(sum(run.results["seconds"] for run in runs) / 60, 1)
    hardware = st.everywhere(runs, "hardware")
    return f"{words}The networks on this page took {minutes} minutes of one process ({hardware})."


def teacher(errors):
    """The teacher's error and its spread over seeds, of `statistics.errors`."""
    own = errors[errors["name"] == "Teacher"]
    mean, half = st.interval(own["error"])
    low, high = data(own["error"].min()), data(own["error"].max())
    spread = f", and single seeds range from {low} to {high} %" if len(own) > 1 else ""
    error = f"{numbers.interval(mean, half, text=data)} % of the test images"
    images = st.binomial(mean, own["images"].iloc[0])
    return (
        f"{over(len(own))}the teacher misreads {error}{spread}. "
        "Another test set of this size would move a single network's error by about "
        f"{data(images)} points."
    )


def search(found, recipe):
    """Found, {epochs: {rate: [held-out error of each seed, %]}}, beside the recipe that is used."""
    tried = found.get(recipe.epochs)
    if not tried:
        return f"No search for a rate is recorded for this profile, which trains at {recipe.lr:g}."
    means = pd.DataFrame(found).map(lambda each: sum(each) / len(each), na_action="ignore")
    best = means[recipe.epochs].idxmin()
    used = "and is used here" if best == recipe.lr else f"while {recipe.lr:g} is used here"
    error = f"{numbers.interval(*st.interval(tried[best]), text=data)} %, {used}"
    text = f"Of {data(len(tried))} rates, {best:g} has the lowest held-out error, {error}"
    apart = {rate: st.difference(pd.Series(tried[rate]) - pd.Series(tried[best])) for rate in tried}
    level = [f"{rate:g}" for rate in tried if rate != best and st.word(apart[rate]) != "worse"]
    text += f"; {listed(level)} can't be told from it." if level else "."
    ends = [f"{data(error)} % after {data(epochs)}" for epochs, error in means.min().items()]
    several = f" With the best rate of each length in epochs, it is {listed(ends)}."
    return text + several if len(ends) > 1 else text


def students(errors, controls, student="BAN-1"):
    """Does a student beat its teacher, and the same training without one?

    errors: `statistics.errors`; controls: {name: {seed: Run}}, of `lineage.raise_controls`.
    """
    frame, answers, clauses, seeds = st.with_controls(errors, controls), [], [], []
    if student not in set(frame["name"]):
        return "No student was trained here, so the question stays open."
    for against, rival in {"Teacher": "its teacher", st.CONTROL: RIVAL}.items():
        rows = [row for row in _pairs(frame, against) if row["name"] == student]
        answers += [st.word(row) for row in rows]
        seeds += [row["seeds"] for row in rows]
        clauses.append(result(rows, rival))
    text = f"{over(seeds[0])}{clauses[0]}"
    if len(answers) < 2:
        return f"{text}. {MISSING}"
    joint = "and" if answers[0] == answers[1] else "but"
    joint += f" in {data(seeds[1])} of these seeds" if seeds[1] < seeds[0] else ""
    second = clauses[1].replace(student, "it", 1)
    end = CONCLUSIONS.get(tuple(answers), NOT_SHOWN) if min(seeds) > 1 else "So nothing is decided"
    return f"{text}, {joint} {second}. {end}."


def later(errors):
    """The paper's second claim: do the generations after BAN-1 improve on it?"""
    frame = errors[(errors["members"] == 1) & (errors["generation"] > 0)]
    if not (rows := _pairs(frame, "BAN-1")):
        return "Nothing after BAN-1 was trained here, so the paper's second claim stays open."
    answers = {st.word(row) for row in rows}
    claims = {"better": "hold", "worse": "turn into losses", "one seed": "can't be judged"}
    claim = claims.get(*answers, "remain undecided") if len(answers) == 1 else "are not shown"
    claim = "hold only in part" if "better" in answers and len(answers) > 1 else claim
    text = f"{over(rows[0]['seeds'])}{result(rows, 'BAN-1')}."
    return f"The gains that the paper reports after BAN-1 {claim} here. {text}"


def ensembles(errors):
    """The paper's ensembles against the best single network, which its test error has chosen."""
    single = errors["members"] == 1
    best = errors[single].groupby("name")["error"].mean().idxmin()
    rows = _pairs(pd.concat([errors[~single], errors[errors["name"] == best]]), best)
    if not rows:
        return "A lineage this short forms no ensemble."
    rows = [row | {"name": _called(row["name"])} for row in rows]
    best = _called(best)
    text = f"{over(rows[0]['seeds'])}{result(rows, best)}."
    picked = "was picked in hindsight as the best single network, which favors it"
    return f"{text} {best[0].upper()}{best[1:]} {picked}."


def company(table):
    """Generations of a lineage against as many unrelated networks, of `statistics.company`."""
    pairs = st.against_strangers(table)
    if not len(pairs := pairs[pairs["size"] > 1]):
        return "These lineages are too few or too short to compare with unrelated networks."
    texts, ends = [], {"undecided": "these seeds can't tell which of the two does better"}
    ends |= {"better": "the lineage does better", "worse": "unrelated networks do better"}
    for kind, group in pairs.groupby("kind", sort=False):
        rows = [row | {"name": row["size"]} for row in group.to_dict("records")]
        strangers = f"as many {kind.replace(st.CONTROL, f'networks of {CONTROL}')}"
        text = result(rows, strangers, noun=" generations")
        end = ends.get(st.word(rows[-1]), "one group of unrelated networks decides nothing")
        texts.append(f"Averaged, {text}: at {rows[-1]['size']} members, {end}.")
    return " ".join(texts)


def calibration(errors, names=None):
    """Are ensembles, or students where there are none, as honest about their doubt?

    names: the students, by default the newest.
    """
    single, texts = errors["members"] == 1, []
    newest = errors.loc[errors[single]["generation"].idxmax(), "name"]
    rival = "Teacher" if single.all() else newest
    names = names or ([newest] if single.all() else errors.loc[~single, "name"].unique())
    measures = (("ece", TRUST, "points of calibration error", 2), ("nll", LIKELY, "nats", 3))
    for column, words, unit, digits in measures:
        rows = [row for row in _pairs(errors, rival, column) if row["name"] in names]
        rows = [row | {"name": _called(row["name"])} for row in rows]
        texts.append(result(rows, _called(rival), words, unit, digits=digits))
    return f"{'. '.join(texts)}." if all(texts) else "No student was trained here."


def excess(errors):
    """Who claims more than it knows? Mean confidence minus accuracy, of `statistics.errors`."""
    claims = {"worse": "overconfident", "better": "too modest"}
    claims |= {"undecided": "neither clearly overconfident nor clearly too modest"}
    by_name = errors.groupby("name", sort=False)["excess"]
    groups = {_called(name): st.difference(each) for name, each in by_name}
    texts = []
    for word, claim in (claims | {"one seed": "not judged by one seed"}).items():
        rows = {name: row for name, row in groups.items() if st.word(row) == word}
        both = [(row["difference"], row["ci95"]) for row in rows.values()]
        sizes = listed(numbers.interval(*each, sign=True, text=data) for each in both or [(0, 0)])
        verb = "are" if len(rows) > 1 else "is"
        texts += [f"{listed(rows)} {verb} {claim} ({sizes} points)"] if rows else []
    return f"Mean confidence minus accuracy: {'; '.join(texts)}."


def heredity(errors, student="BAN-1"):
    """Do good teachers raise good students? Their correlation over seeds, with its interval."""
    table = errors.pivot(index="seed", columns="name", values="error")
    pairs = table.reindex(columns=["Teacher", student]).dropna()
    if len(pairs) < 4 or pairs.nunique().min() < 2:
        return "With fewer than four seeds, a teacher's luck can't be told from its student's."
    r = stats.pearsonr(pairs["Teacher"], pairs[student])
    low, high = r.confidence_interval()
    answer = f"better teachers have {'better' if low > 0 else 'worse'} students"
    if low <= 0 <= high:
        answer = "whether better teachers have better students is undecided"
    found, *ends = (data(value, sign=True) for value in (r.statistic, low, high))
    text = f"r = {found}, 95 % interval {ends[0]} to {ends[1]}"
    return f"Over {data(len(pairs))} seeds, {answer} (correlation of their errors: {text})."


def table2(gains, board):
    """Table 2's students, all and by family. gains: `ledger.students`; board: `ledger.ledger`."""
    if not len(gains):
        return "No student of table 2 was trained here."

    def share(rows, gain="share", half="ci95"):
        wins = sum(row[gain] > 0 and st.clear(row[gain], row[half]) for _, row in rows.iterrows())
        return f"{data(wins)} of {data(len(rows))}"

    beside = {name: rows for name, rows in gains.groupby("against")}
    own = beside["teacher"]
    families = own.groupby(own["network"].str.extract(r"^Match([A-Za-z]+)")[0], sort=False)
    each = listed(f"{share(rows)} {family}s" for family, rows in families)
    if own["seeds"].max() < 2:
        return f"{ONE_SEED} {MISSING}"
    text = f"{share(own)} students clearly beat their teacher, a DenseNet: {each}. "
    control = board[(board["column"] == "BAN") & board["control_gain"].notna()]
    rivals = share(control, "control_gain", "control_gain_ci95")
    text += f"{rivals} clearly beat {RIVAL}. " if len(control) else f"{MISSING} "
    if "labels alone" in beside:
        text += f"{share(beside['labels alone'])} clearly beat the same network on labels alone."
    return text.strip()


def agreement(table):
    """Do students copy their teacher's predictions? table: `statistics.agreements`."""
    texts = []
    for kind, values in table.groupby("kind", sort=False)["agreement"]:
        texts.append(f"{kind} agree on {numbers.interval(*st.interval(values), text=data)} %")
    text = f"{listed(texts)} of the test images."
    return text[0].upper() + text[1:]


def cost(result):
    """What a student costs, of a measurement of `benchmarks/loop.py`."""
    names = ("distill_online", "distill_remembered", "distill_later")
    online, first, later = (data(result["distill_over_plain"][name]["median"]) for name in names)
    return (
        f"A student whose teacher is asked each time costs {online} training runs on labels alone. "
        f"If the teacher's answers are remembered, over {data(PAPER.epochs)} epochs the first "
        f"student costs {first} and each later one {later} (medians of {data(result['rounds'])} "
        "rounds on one machine)."
    )


def ledger(counts):
    """How many of the paper's errors have which verdict, of `ledger.counts`."""
    judged = {name: count for name, count in counts.items() if name not in UNJUDGED}
    told = listed(f"{data(count)} {name}" for name, count in judged.items())
    start = f"Of the {data(sum(counts.values()))} errors that the paper reports"
    return f"{start}, {data(sum(judged.values()))} have a verdict: {told}."


def guess(claim, row, control=None):
    """The outcome of a guess, such as "BAN-1 makes fewer errors than its teacher".

    row: of `statistics.paired`, whose difference is negative where the claim is right; control:
    the same model's row beside `labels x2`, for a claim about a teacher.
    """
    outcomes = {"better": "Yes", "worse": "No, the other way round", "undecided": "Undecided"}
    size = numbers.interval(row["difference"], row["ci95"], sign=True, text=data)
    text = f"*{claim}?* {outcomes.get(st.word(row), 'One seed cannot tell')} ({size} points)."
    if "its teacher" not in claim:
        return text
    beside = f"{result([control], RIVAL)}." if control else MISSING
    return f"{text} {beside}"
