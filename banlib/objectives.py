"""What a student is trained on: the labels, the teacher's output, or both (eqs. 1-3), and two controls of 2018.

Every term is a pure function of logits and labels and returns the mean over the batch in nats. `OBJECTIVES` names their
sums: `label` trains generation 0, `label+teacher` is this paper's BAN. `objective_loss` weights the two terms.
The teacher's logits are constants here: no gradient reaches them.
"""

import torch
import torch.nn.functional as F


def label_loss(student_logits, labels):
    """Cross-entropy from the labels to the student (eq. 1).

    student_logits: float [batch, classes]; labels: int64 [batch]. Returns the mean over the batch in nats.
    """
    return F.cross_entropy(student_logits.float(), labels)


def distillation_loss(student_logits, teacher_logits, temperature=1.0):
    """Cross-entropy from the teacher's distribution to the student's (second term of eqs. 2 and 3).

    The Kullback-Leibler form differs by the teacher's entropy, a constant, so the gradient is the same.
    student_logits, teacher_logits: float [batch, classes], on one device.
    Returns the mean over the batch in nats, times temperature**2 so that its gradient keeps its size.
    Raises ValueError if the shapes differ (a [batch, 1] teacher would broadcast without a word).
    """
    check_logits(student_logits, teacher_logits, temperature)
    target = F.softmax(teacher_logits.detach().float() / temperature, dim=1)
    return F.cross_entropy(student_logits.float() / temperature, target) * temperature**2


def cwtm(student_logits, labels, teacher_logits, temperature=1.0, generator=None):
    """Confidence weighted by teacher maximum (2018 version): labels only, each sample weighted by the teacher's
    highest probability on it; the weights sum to one over the batch."""
    check_logits(student_logits, teacher_logits, temperature)
    confidence = F.softmax(teacher_logits.detach().float() / temperature, dim=1).amax(dim=1)
    losses = F.cross_entropy(student_logits.float(), labels, reduction="none")
    return (losses * confidence).sum() / confidence.sum()


def dkpp(student_logits, labels, teacher_logits, temperature=1.0, generator=None):
    """Dark knowledge with permuted predictions (2018 version): teacher only, its non-highest outputs shuffled
    within each sample, so that which wrong class it prefers is lost and how much it doubts is kept.

    generator: torch.Generator on the logits' device for the permutations, or None for the global one.
    """
    return distillation_loss(student_logits, permute_non_maximum(teacher_logits, generator), temperature)


def permute_non_maximum(logits, generator=None):
    """logits [batch, classes] with every entry but each row's largest permuted at random; the largest stays."""
    noise = torch.rand(logits.shape, device=logits.device, generator=generator)
    top = logits.argmax(dim=1, keepdim=True)
    # Sorting with the largest pinned to the front lists the others in random order. Writing that list to the
    # places of the others, taken in index order, is a uniform permutation of them.
    source = noise.scatter(1, top, -1.0).argsort(dim=1)
    place = torch.arange(logits.shape[1], device=logits.device).expand_as(logits).scatter(1, top, -1).argsort(dim=1)
    return torch.empty_like(logits).scatter_(1, place, logits.gather(1, source))


def check_logits(student_logits, teacher_logits, temperature):
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits have shape {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)}; "
            "expected the same [batch, classes] for both"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


# What each objective is the sum of: (term on the labels, term on the teacher's output), None where it has none.
OBJECTIVES = {
    "label": (lambda student_logits, labels, *_: label_loss(student_logits, labels), None),
    "label+teacher": (
        lambda student_logits, labels, *_: label_loss(student_logits, labels),
        lambda student_logits, labels, teacher_logits, temperature, generator: distillation_loss(
            student_logits, teacher_logits, temperature
        ),
    ),
    "teacher": (
        None,
        lambda student_logits, labels, teacher_logits, temperature, generator: distillation_loss(
            student_logits, teacher_logits, temperature
        ),
    ),
    "cwtm": (cwtm, None),
    "dkpp": (None, dkpp),
}


def objective_loss(
    objective, student_logits, labels, teacher_logits=None, temperature=1.0, weights=(1.0, 1.0), generator=None
):
    """The named objective with its two terms weighted by (label weight, teacher weight): a scalar in nats.

    The paper's eq. 3 is "label+teacher" with both weights 1. Its gradient is then about twice as long as that of the
    labels alone; weights (1/2, 1/2) keep the length, and "label" with weight 2 is the control that has it doubled
    without a teacher.
    """
    terms = zip(weights, OBJECTIVES[objective], strict=True)
    given = student_logits, labels, teacher_logits, temperature, generator
    return sum(weight * term(*given) for weight, term in terms if term is not None)
