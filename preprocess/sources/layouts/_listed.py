"""Labels of data sets that list what a report says: names that are CheXpert's, narrower kinds, "normal"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medvl.preprocess.sources.labels import finding_name
from medvl.records import LabelState

__all__ = ["listed_states"]


def listed_states(
    terms: Iterable[str], *, kinds: Mapping[str, Iterable[str]], others: bool = True
) -> dict[str, LabelState]:
    """Return the labels of a list of terms.

    What is listed is present. What is not listed is unknown, but for a list that only says "normal": then the
    findings of ``kinds`` are absent. "normal" beside a finding says nothing.

    Args:
        terms: in lower case.
        kinds: CheXpert's name to the terms that mean it or a kind of it; the one that means it first.
        others: whether terms that are in no list keep their own names.

    Examples:
        >>> kinds = {"edema": ["pulmonary edema"], "fracture": ["fracture", "rib fracture"]}
        >>> listed_states(["rib fracture", "normal"], kinds=kinds)
        {'rib_fracture': 'present', 'fracture': 'present'}
        >>> listed_states(["normal"], kinds=kinds)
        {'no_finding': 'present', 'edema': 'absent', 'fracture': 'absent'}
    """
    same = {next(iter(members)): name for name, members in kinds.items()}
    said = [term for term in terms if term]
    states: dict[str, LabelState] = {}
    if set(said) == {"normal"}:
        states["no_finding"] = "present"
        for name in kinds:
            states[name] = "absent"
        return states
    for term in said:
        if term == "normal":
            continue
        broader = [name for name, members in kinds.items() if term in members]
        if term not in same and (others or broader):
            states[finding_name(term)] = "present"
        states |= dict.fromkeys(broader, "present")
    return states
