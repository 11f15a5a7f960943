"""Which findings a text names, and where: its clauses, and the places that signs are said of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medvl.preprocess.reports.findings_lexicon import Mark, Sign, Token
from medvl.records import LabelState

__all__ = ["BOUNDARY", "JOINTS", "PLACES", "VERBS", "Claim", "Text"]

PLACES = 16
"""Marks between a sign and its place; it bounds the work on any text."""
BOUNDARY = ("comma", "and")
JOINTS = ("comma", "and", "or", "slash")
VERBS = ("verb", "verbs", "exist")
_PREDICATES = ("unchanged", "changed", "uncertain")


@dataclass(slots=True)
class Claim:
    """That a finding is named at mark ``at``, with the place at mark ``place`` where it needs one.

    Attributes:
        state: its state, or "" where the words say nothing of it.
        fixed: cues do not change the state.
        cue: the mark that decided the state, or -1.
    """

    finding: str
    at: int
    place: int
    state: LabelState | str
    fixed: bool = False
    cue: int = -1


class Text:
    """The marks of one text, parted into clauses."""

    def __init__(self, tokens: list[Token], marks: list[Mark], *, normal: str) -> None:
        self.tokens, self.marks, self.normal = tokens, marks, normal
        self._part()

    # Clauses

    def _part(self) -> None:
        """Number the clauses: one starts at a break, or at a joint with a subject and a verb behind it."""
        marks = self.marks
        verb, joint = self._next(VERBS), self._next((*JOINTS, "break", "which"))
        clause, said_verb, denied = 0, False, False
        for i, mark in enumerate(marks):
            struct = mark.entry.struct
            if struct == "break" or (
                struct in BOUNDARY and self._starts(i + 1, verb, joint, said_verb, denied)
            ):
                clause, said_verb, denied = clause + 1, False, False
            mark.clause = clause
            said_verb |= mark.entry.verb
            denied |= mark.entry.pre in ("absent", "unsaid")

    def _next(self, structs: tuple[str, ...]) -> list[int]:
        """Return, for each mark, the first mark from there on that is one of ``structs``."""
        following = [len(self.marks)] * (len(self.marks) + 1)
        for i in range(len(self.marks) - 1, -1, -1):
            entry = self.marks[i].entry
            hit = entry.struct in structs or (entry.verb and structs is VERBS)
            following[i] = i if hit else following[i + 1]
        return following

    def _starts(self, start: int, verb: list[int], joint: list[int], said_verb: bool, denied: bool) -> bool:  # noqa: FBT001
        """Say whether a clause with a subject of its own starts at mark ``start``."""
        if start >= len(self.marks):
            return False
        first = self.marks[start].entry
        if first.struct == "exist":
            return True
        where = verb[start]
        if where == start or where >= joint[start] or where >= len(self.marks):
            return False
        if said_verb:
            return True
        return denied and (
            first.struct in ("degree", "det")
            or bool(first.sites and not first.content)
            or self._changes(where)
        )

    def _changes(self, verb: int) -> bool:
        """Say whether a verb is followed by a cue of change or by a state of health."""
        after = self.marks[verb + 1].entry if verb + 1 < len(self.marks) else None
        if self.marks[verb].entry.post in _PREDICATES:
            return True
        return after is not None and (after.post in _PREDICATES or any(sign.normal for sign in after.signs))

    # What is named

    def named(self) -> list[Claim]:
        """Return the findings that the text names, in order, before any cue is read."""
        return [claim for i, mark in enumerate(self.marks) if mark.entry.content for claim in self._named(i)]

    def _named(self, i: int) -> Iterator[Claim]:
        """Yield the findings that mark ``i`` names, before any cue is read."""
        entry = self.marks[i].entry
        for finding in entry.findings:
            yield Claim(finding, i, i, "present", fixed=finding == self.normal)
        for sign in entry.signs:
            sites = self._places(i, sign)
            if sign.default and not sites:
                for finding, state in sign.default.items():
                    yield Claim(finding, i, i, state)
            seen = set()
            for place in sites:
                for site in self.marks[place].entry.sites:
                    for finding, state in sign.sites.get(site, {}).items():
                        if finding not in seen:
                            seen.add(finding)
                            yield Claim(finding, i, place, state, fixed=sign.normal)

    def _places(self, i: int, sign: Sign) -> list[int]:
        """Return the places that a sign is said of: close after it, else before it, else after a verb."""
        wanted = sign.competing
        right, left = self._right(i, wanted, over_verbs=False), self._left(i, wanted)
        if right == [] and left and self.marks[i].first - self.marks[left[0]].last <= 2:
            right = None  # "nodes enlarged in the mediastinum": what follows only says where
        for places in (right, left):
            if places is not None:
                return places
        places = self._right(i, wanted, over_verbs=True)
        return self._earlier(i, wanted) if places is None and sign.default else places or []

    def _right(self, i: int, wanted: frozenset[str], *, over_verbs: bool) -> list[int] | None:
        """Search after the sign; an empty list means that a place which nobody wants has it."""
        marks, adjective = self.marks, False
        for j in range(i + 1, min(i + PLACES, len(marks))):
            entry = marks[j].entry
            if marks[j].clause != marks[i].clause or entry.struct in ("which", "with", "break"):
                return None
            if entry.struct in VERBS and not over_verbs:
                return None
            if entry.struct in JOINTS and not adjective:
                return None
            if entry.sites:
                adjective = self._adjective(j)
                if entry.sites & wanted and not self._lost(j, wanted):
                    return self._joined(j, 1, wanted)
                if not adjective:
                    return []
            elif entry.content or entry.pre in ("absent", "uncertain", "unsaid"):
                return None
        return None

    def _left(self, i: int, wanted: frozenset[str]) -> list[int] | None:
        """Search before the sign, not beyond another place's noun nor another sign's clause."""
        marks, passed, signs, joints, tied = self.marks, False, False, False, False
        for j in range(i - 1, max(i - PLACES, -1), -1):
            entry = marks[j].entry
            if marks[j].clause != marks[i].clause or entry.struct == "break":
                return None
            joints |= entry.struct in BOUNDARY
            tied |= entry.struct in (*JOINTS, "with")
            if entry.sites:
                if entry.sites & wanted and not (passed and (self._adjective(j) or not tied)):
                    return self._joined(j, -1, wanted)
                passed = True
            elif entry.content:
                signs = True
            if (signs and joints) or entry.findings:
                return None
        return None

    def _earlier(self, i: int, wanted: frozenset[str]) -> list[int]:
        """Return the last wanted place of the same sentence before the sign's clause."""
        for j in range(i - 1, max(i - PLACES, -1), -1):
            if self.tokens[self.marks[j].first][0] == ".":
                break
            if self.marks[j].clause != self.marks[i].clause and self.marks[j].entry.sites & wanted:
                return [j]
        return []

    def _joined(self, j: int, step: int, wanted: frozenset[str]) -> list[int]:
        """Return place ``j`` and those that joints tie to it."""
        places, joint = [j], False
        for k in range(j + step, j + step * PLACES, step):
            if not 0 <= k < len(self.marks) or self.marks[k].clause != self.marks[j].clause:
                break
            entry = self.marks[k].entry
            if entry.sites and joint:
                places += [k] if entry.sites & wanted else []
                joint = False
            elif entry.struct in JOINTS:
                joint = True
            elif not (entry.struct in ("det", "degree") or entry.sites):
                break
        return places

    def _adjective(self, j: int) -> bool:
        return self.tokens[self.marks[j].last][0].endswith(("al", "ic", "ar", "ary"))

    def _lost(self, j: int, wanted: frozenset[str]) -> bool:
        """Say whether the place is an adjective of another place's noun ("mediastinal lymph nodes")."""
        while self._adjective(j) and j + 1 < len(self.marks):
            after = self.marks[j + 1]
            if after.entry.sites and after.first == self.marks[j].last + 1:
                j += 1
            elif after.entry.struct in JOINTS and j + 2 < len(self.marks) and self.marks[j + 2].entry.sites:
                j += 2
            else:
                break
        return not self.marks[j].entry.sites & wanted
