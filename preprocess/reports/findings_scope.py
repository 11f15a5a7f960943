"""Which cue speaks of which finding: clauses, scopes before and after, and places, in one pass over the marks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from medvl.preprocess.reports.findings_lexicon import Mark, Sign, Token
from medvl.records import LabelState

__all__ = ["Claim", "claims_of"]

_REACH = 30
"""Marks that a scope may span; it bounds the work on any text."""
_PLACES = 16
_BOUNDARY = ("comma", "and")
_JOINTS = ("comma", "and", "or", "slash")
_VERBS = ("verb", "verbs", "exist")
_CHOICE = {"or", "comma", "degree", "", "and", "slash"}
_PREDICATES = ("unchanged", "changed", "uncertain")
_NEAR = ("absent_near", "uncertain_near", "prior", "removed")
_LASTING = ("fracture",)
"""Findings that a "prior" one still is."""


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


def claims_of(
    tokens: list[Token], marks: list[Mark], *, devices: frozenset[str], normal: str
) -> list[Claim]:
    """Return what a text says of each finding that it names, in order."""
    if not any(mark.entry.content for mark in marks):
        return []
    return _Reading(tokens, marks, devices, normal).claims()


class _Reading:
    """The marks of one text with their clauses, and the side to which each cue speaks."""

    def __init__(self, tokens: list[Token], marks: list[Mark], devices: frozenset[str], normal: str) -> None:
        self.tokens, self.marks, self.devices, self.normal = tokens, marks, devices, normal
        self._part()

    def claims(self) -> list[Claim]:
        found = [claim for i, mark in enumerate(self.marks) if mark.entry.content for claim in self._named(i)]
        self.content = {claim.at for claim in found}
        self.healthy = {claim.at for claim in found if claim.fixed}
        self.sides = [self._side(i) for i in range(len(self.marks))]
        at, scope = -1, ([], [])
        for claim in found:
            if claim.fixed:
                self._deny(claim)
                continue
            if claim.at != at:
                at, scope = claim.at, (self._before(claim.at), self._after(claim.at))
            self._decide(claim, *scope)
        self._alternatives(found)
        return [claim for claim in found if claim.state]

    # Clauses

    def _part(self) -> None:
        """Number the clauses: a new one starts at a break, or where a joint is followed by subject and verb."""
        marks = self.marks
        verb, joint = self._next(_VERBS), self._next((*_JOINTS, "break", "which"))
        clause, said_verb, denied = 0, False, False
        for i, mark in enumerate(marks):
            struct = mark.entry.struct
            if struct == "break" or (
                struct in _BOUNDARY and self._starts(i + 1, verb, joint, said_verb, denied)
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
            hit = entry.struct in structs or (entry.verb and structs is _VERBS)
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
            first.struct in ("degree", "det") or bool(first.sites and not first.content) or self._changes(where)
        )

    def _changes(self, verb: int) -> bool:
        """Say whether a verb is followed by a cue of change or by a state of health."""
        after = self.marks[verb + 1].entry if verb + 1 < len(self.marks) else None
        if self.marks[verb].entry.post in _PREDICATES:
            return True
        return after is not None and (after.post in _PREDICATES or any(sign.normal for sign in after.signs))

    # What is named

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
        for places in (self._right(i, wanted, over_verbs=False), self._left(i, wanted)):
            if places is not None:
                return places
        places = self._right(i, wanted, over_verbs=True)
        return self._earlier(i, wanted) if places is None and sign.default else places or []

    def _right(self, i: int, wanted: frozenset[str], *, over_verbs: bool) -> list[int] | None:
        """Search after the sign; an empty list means that a place which nobody wants has it."""
        marks, adjective = self.marks, False
        for j in range(i + 1, min(i + _PLACES, len(marks))):
            entry = marks[j].entry
            if marks[j].clause != marks[i].clause or entry.struct in ("which", "with", "break"):
                return None
            if entry.struct in _VERBS and not over_verbs:
                return None
            if entry.struct in _JOINTS and not adjective:
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
        for j in range(i - 1, max(i - _PLACES, -1), -1):
            entry = marks[j].entry
            if marks[j].clause != marks[i].clause or entry.struct in ("with", "break"):
                return None
            joints |= entry.struct in _BOUNDARY
            tied |= entry.struct in _JOINTS
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
        for j in range(i - 1, max(i - _PLACES, -1), -1):
            if self.tokens[self.marks[j].first][0] == ".":
                break
            if self.marks[j].clause != self.marks[i].clause and self.marks[j].entry.sites & wanted:
                return [j]
        return []

    def _joined(self, j: int, step: int, wanted: frozenset[str]) -> list[int]:
        """Return place ``j`` and those that joints tie to it."""
        places, joint = [j], False
        for k in range(j + step, j + step * _PLACES, step):
            if not 0 <= k < len(self.marks) or self.marks[k].clause != self.marks[j].clause:
                break
            entry = self.marks[k].entry
            if entry.sites and joint:
                places += [k] if entry.sites & wanted else []
                joint = False
            elif entry.struct in _JOINTS:
                joint = True
            elif not (entry.struct in ("det", "degree") or entry.sites):
                break
        return places

    def _adjective(self, j: int) -> bool:
        return self.tokens[self.marks[j].last][0].endswith(("al", "ic", "ar", "ary"))

    def _lost(self, j: int, wanted: frozenset[str]) -> bool:
        """Say whether the place is an adjective of a noun that is another place ("mediastinal lymph nodes")."""
        while self._adjective(j) and j + 1 < len(self.marks):
            after = self.marks[j + 1]
            if after.entry.sites and after.first == self.marks[j].last + 1:
                j += 1
            elif after.entry.struct in _JOINTS and j + 2 < len(self.marks) and self.marks[j + 2].entry.sites:
                j += 2
            else:
                break
        return not self.marks[j].entry.sites & wanted

    # Cues

    def _side(self, i: int) -> str:
        """Say whether cue ``i`` speaks of what follows or of what came before."""
        entry = self.marks[i].entry
        if not (entry.pre and entry.post):
            if entry.pre in ("absent", "absent_near") and self._answers(i):
                return "post"
            return "pre" if entry.pre else "post" if entry.post else ""
        ahead = self._ahead(i)
        before = self.marks[i - 1] if i else None
        if before and before.entry.struct in ("verb", "verbs") and self.marks[i].first - before.last <= 2:
            if entry.post != "uncertain" and self._behind(i):
                return "post"
        return "pre" if ahead else "post"

    def _answers(self, i: int) -> bool:
        """Say whether "no" answers a heading ("Effusion: no") or ends a clause ("a pneumothorax is not")."""
        first, after = self.marks[i].first, self.marks[i].last + 1
        ends = after == len(self.tokens) or self.tokens[after][0] in ".;,"
        heading = first > 0 and self.tokens[first - 1][0] == ":"
        return (heading or (ends and self.tokens[first][0] == "not")) and not self._ahead(i) and self._behind(i)

    def _ahead(self, i: int) -> bool:
        """Say whether a finding follows before the next joint or verb."""
        for j in range(i + 1, min(i + _PLACES, len(self.marks))):
            entry = self.marks[j].entry
            if self.marks[j].clause != self.marks[i].clause:
                return False
            if j in self.content and j not in self.healthy:
                return True
            if entry.struct in ("comma", "and", "with", "which", *_VERBS):
                return False
        return False

    def _behind(self, i: int) -> bool:
        """Say whether the clause names a finding before the cue."""
        for j in range(i - 1, max(i - _REACH, -1), -1):
            if self.marks[j].clause != self.marks[i].clause:
                return False
            if j in self.content:
                return True
        return False

    def _before(self, i: int) -> list[tuple[str, int]]:
        """Return the kinds and marks of the cues in front that reach finding ``i``."""
        marks, found, near = self.marks, [], True
        for j in range(i - 1, max(i - _REACH, -1), -1):
            entry = marks[j].entry
            if marks[j].clause != marks[i].clause or entry.struct in ("with", "which", *_VERBS):
                break
            if entry.struct in _BOUNDARY:
                if self._opens(j + 1, i):
                    break
                near = False
            if self.sides[j] == "pre":
                if near or entry.pre not in _NEAR:
                    found.append((entry.pre, j))
                if entry.verb:
                    break
            elif self.sides[j] == "post":
                break
        return found

    def _opens(self, j: int, i: int) -> bool:
        """Say whether a new phrase starts after a joint, which no earlier cue reaches."""
        if j >= i:
            return False
        entry = self.marks[j].entry
        if self.sides[j] == "pre" and entry.pre != "changed":
            return True
        opening = entry.struct in ("degree", "det", "exist") or self.sides[j] == "pre"
        return opening and not self._or_after(j)

    def _or_after(self, j: int) -> bool:
        """Say whether the list goes on to an "or", so that its negation holds to the end."""
        for k in range(j, min(j + _REACH, len(self.marks))):
            if self.marks[k].clause != self.marks[j].clause or self.marks[k].entry.struct in _VERBS:
                return False
            if self.marks[k].entry.struct == "or":
                return True
        return False

    def _after(self, i: int) -> list[tuple[str, int]]:
        """Return the kind and mark of the predicate behind that reaches finding ``i``."""
        marks, others, tied, plural, boundary = self.marks, 0, False, False, False
        for j in range(i + 1, min(i + _REACH, len(marks))):
            entry = marks[j].entry
            struct = entry.struct
            if marks[j].clause != marks[i].clause or (struct == "which" and others) or j in self.healthy:
                break
            tied |= struct in ("and", "or", "slash", "with")
            plural |= struct == "verbs"
            boundary |= struct in _BOUNDARY
            if self.sides[j] == "pre" and (boundary or (entry.pre != "changed" and self._ahead(j))):
                break
            if self.sides[j] == "post" and not (boundary and entry.post == "uncertain_near"):
                return [(entry.post or "absent", j)] if not others or tied or plural else []
            others += j in self.content
        return []

    # States

    def _decide(self, claim: Claim, before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
        """Give a claim the state that its cues say, the strongest first."""
        kinds: dict[str, int] = {}
        for kind, mark in after + before:
            if kind == "removed":
                kind = "absent" if claim.finding in self.devices else "changed"
            kinds.setdefault(kind.removesuffix("_near"), mark)
        last = after[0][0] if after else ""
        if "doubted" in kinds:
            self._set(claim, "uncertain", kinds["doubted"])
        elif last == "absent" or (last == "removed" and "absent" in kinds):
            self._set(claim, "absent", kinds["absent"])
        elif "unsaid" in kinds and last != "unchanged":
            self._set(claim, "", kinds["unsaid"])
        elif "absent" in kinds:
            self._set(claim, "absent", kinds["absent"])
        elif "history" in kinds and claim.finding not in self.devices:
            self._set(claim, "", kinds["history"])
        elif "uncertain" in kinds:
            self._set(claim, "uncertain", kinds["uncertain"])
        elif "prior" in kinds and not after and claim.finding not in (*_LASTING, *self.devices):
            self._set(claim, "", kinds["prior"])
        else:
            self._compare(claim, kinds)

    def _compare(self, claim: Claim, kinds: dict[str, int]) -> None:
        """Let the nearest cue say whether what is present is as before."""
        near = sorted((abs(mark - claim.at), kind) for kind, mark in kinds.items() if kind in ("unchanged", "changed"))
        if near and claim.state == "present":
            kind = near[0][1]
            self._set(claim, "unchanged" if kind == "unchanged" else "present", kinds[kind])

    def _deny(self, claim: Claim) -> None:
        """Take back a statement of health that is itself denied: "is not normal"."""
        claim.cue = claim.at
        j = claim.at - 1
        if j >= 0 and self.sides[j] == "pre" and self.marks[j].entry.pre.startswith("absent"):
            if self.marks[claim.at].first - self.marks[j].last <= 1:
                claim.state = ""

    @staticmethod
    def _set(claim: Claim, state: LabelState | str, cue: int) -> None:
        claim.state, claim.cue = state, cue

    def _alternatives(self, found: list[Claim]) -> None:
        """Make findings uncertain between which the words do not choose: "A versus B", "A or B"."""
        groups = [list(group) for _, group in itertools.groupby(found, key=lambda claim: claim.at)]
        for first, second in itertools.pairwise(groups):
            start, end = first[0].at, second[0].at
            if end - start > _PLACES or self.marks[start].clause != self.marks[end].clause:
                continue
            between = {mark.entry.struct for mark in self.marks[start + 1 : end]}
            open_choice = "or" in between and between <= _CHOICE
            if "versus" in between or (open_choice and {c.finding for c in first} != {c.finding for c in second}):
                for claim in (*first, *second):
                    if claim.state == "present" and claim.cue < 0:
                        self._set(claim, "uncertain", start + 1)
