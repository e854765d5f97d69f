"""What a student is trained on: labels, the teacher's output, or both (eqs. 1-3).

Every term is a pure function of logits, float [batch, classes], and labels, int64 [batch], and
returns a scalar in nats. The teacher's logits are constants: no gradient reaches them.
"""

import torch
import torch.nn.functional as F


def label_loss(student_logits, labels):
    """Cross-entropy from the labels to the student, the mean over the batch (eq. 1)."""
    return F.cross_entropy(student_logits.float(), labels)


def distillation_loss(student_logits, teacher_logits, temperature=1.0):
    """Cross-entropy from the teacher's distribution to the student's (second term of eqs. 2 and 3).

    The Kullback-Leibler form differs by the teacher's entropy, a constant: same gradient.
    Returns the mean over the batch, times temperature**2 so that its gradient keeps its size.
    Raises ValueError if the shapes differ (a [batch, 1] teacher would broadcast without a word).
    """
    check_logits(student_logits, teacher_logits, temperature)
    target = F.softmax(teacher_logits.detach().float() / temperature, dim=1)
    return F.cross_entropy(student_logits.float() / temperature, target) * temperature**2


def cwtm(student_logits, labels, teacher_logits, temperature=1.0, generator=None):
    """Confidence weighted by teacher maximum (2018 version), a control without dark knowledge.

    The label loss, each image weighted by the teacher's highest probability on it, normalized.
    """
    check_logits(student_logits, teacher_logits, temperature)
    confidence = F.softmax(teacher_logits.detach().float() / temperature, dim=1).amax(dim=1)
    losses = F.cross_entropy(student_logits.float(), labels, reduction="none")
    return (losses * confidence).sum() / confidence.sum()


def dkpp(student_logits, labels, teacher_logits, temperature=1.0, generator=None):
    """Dark knowledge with permuted predictions (2018 version), a control without similar classes.

    The distillation loss, the teacher's lesser outputs shuffled within each image.
    generator: torch.Generator on the logits' device, or None for the global one.
    """
    permuted = permute_non_maximum(teacher_logits, generator)
    return distillation_loss(student_logits, permuted, temperature)


def permute_non_maximum(logits, generator=None):
    """logits with every entry but each row's largest permuted at random; the largest stays."""
    noise = torch.rand(logits.shape, device=logits.device, generator=generator)
    top = logits.argmax(dim=1, keepdim=True)
    # Sorting with the largest pinned to the front lists the others in random order. Writing that
    # list to the places of the others, in index order, is a uniform permutation of them.
    source = noise.scatter(1, top, -1.0).argsort(dim=1)
    index = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    place = index.scatter(1, top, -1).argsort(dim=1)
    return torch.empty_like(logits).scatter_(1, place, logits.gather(1, source))


def check_logits(student_logits, teacher_logits, temperature):
    own, given = list(student_logits.shape), list(teacher_logits.shape)
    if len(own) != 2 or own != given:
        shapes = f"student logits have shape {own} and teacher logits {given}"
        raise ValueError(f"{shapes}; expected the same [batch, classes] for both")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _labels(student_logits, labels, teacher_logits, temperature, generator):
    return label_loss(student_logits, labels)


def _teacher(student_logits, labels, teacher_logits, temperature, generator):
    return distillation_loss(student_logits, teacher_logits, temperature)


# What each objective is the sum of: (term on the labels, term on the teacher's output).
OBJECTIVES = {
    "label": (_labels, None),  # generation 0
    "label+teacher": (_labels, _teacher),  # this paper's BAN
    "teacher": (None, _teacher),
    "cwtm": (cwtm, None),
    "dkpp": (None, dkpp),
}


def objective_loss(
    objective,
    student_logits,
    labels,
    teacher_logits=None,
    temperature=1.0,
    weights=(1.0, 1.0),
    generator=None,
):
    """The named objective, its terms weighted by (label weight, teacher weight).

    Eq. 3 is "label+teacher" with both weights 1. Its gradient is about twice as long as that of the
    labels alone; weights (1/2, 1/2) keep the length, and "label" with weight 2 is the control that
    doubles it without a teacher.
    """
    given = student_logits, labels, teacher_logits, temperature, generator
    terms = zip(weights, OBJECTIVES[objective], strict=True)
    return sum(weight * term(*given) for weight, term in terms if term is not None)
