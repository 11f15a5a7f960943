"""Which cue speaks of which finding: scopes before and after it, in bounded steps."""

from __future__ import annotations

import itertools

from medvl.preprocess.reports.findings_lexicon import Mark, Token
from medvl.preprocess.reports.findings_places import BOUNDARY, PLACES, VERBS, Claim, Text
from medvl.records import LabelState

__all__ = ["claims_of", "named_in"]

_REACH = 30
"""Marks that a scope may span; it bounds the work on any text."""
_HEADING = 6
"""Words from the finding of a heading to its colon, and from there to the finding again, at most: "Nodules,
masses and cysts: there is no suspicious nodule"."""
_CHOICE = {"or", "comma", "degree", "", "and", "slash"}
_NEAR = ("absent_near", "uncertain_near", "prior", "removed")
_LASTING = ("fracture",)
"""Findings that a "prior" one still is."""


def claims_of(tokens: list[Token], marks: list[Mark], *, devices: frozenset[str], normal: str) -> list[Claim]:
    """Return what a text says of each finding that it names, in order."""
    if not any(mark.entry.content for mark in marks):
        return []
    return _Cues(Text(tokens, marks, normal=normal), devices).claims()


def named_in(tokens: list[Token], marks: list[Mark], *, normal: str) -> list[tuple[Claim, Mark]]:
    """Return the findings that a text names, whatever it says of them, with the marks that name them."""
    text = Text(tokens, marks, normal=normal)
    return [(claim, marks[claim.at]) for claim in text.named()]


class _Cues:
    """The claims of one text, and the side to which each of its cues speaks."""

    def __init__(self, text: Text, devices: frozenset[str]) -> None:
        self.tokens, self.marks, self.devices = text.tokens, text.marks, devices
        self.found = text.named()
        self.content = {claim.at for claim in self.found}
        self.healthy = {claim.at for claim in self.found if claim.fixed}
        self.sides = [self._side(i) for i in range(len(self.marks))]

    def claims(self) -> list[Claim]:
        """Decide every claim; one of which nothing is said is left out."""
        at, before, after = -1, [], []
        for claim in self.found:
            if claim.fixed:
                self._deny(claim)
                continue
            if claim.at != at:
                at, before, after = claim.at, self._before(claim.at), self._after(claim.at)
                if claim.place < at:
                    before += self._denied(claim.place, at)
            self._decide(claim, before, after)
        self._alternatives(self.found)
        return [claim for claim in self.found if claim.state and not self._heads(claim)]

    def _heads(self, claim: Claim) -> bool:
        """Say whether a claim is but the heading of what is said of it: "Nodules: no suspicious nodule"."""
        if claim.state != "present" or claim.cue >= 0:
            return False
        tokens, last = self.tokens, self.marks[claim.at].last
        stops = (k for k in range(last + 1, min(last + _HEADING, len(tokens))) if tokens[k][0] in ":.;")
        colon = next(stops, None)
        if colon is None or tokens[colon][0] != ":":
            return False
        for j in range(claim.at, -1, -1):  # "multiple nodules: …" and "there are nodules: …" say more
            entry = self.marks[j].entry
            if entry.struct == "break":
                break
            if entry.struct == "degree" or entry.struct in VERBS:
                return False
        behind = self.marks[claim.at + 1 : claim.at + _HEADING]
        if any(mark.first < colon and mark.entry.struct in VERBS for mark in behind):
            return False  # so does "nodules are seen: …"
        # "effusion: small on the left, no effusion on the right": what stands between says more, too.
        reach = range(colon + 1, min(colon + _HEADING, len(tokens)))
        end = next((k for k in reach if tokens[k][0] in ",.;"), reach.stop)
        return any(
            other.finding == claim.finding and colon < self.marks[other.at].first < end
            for other in self.found
        )

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
        return (
            (heading or (ends and self.tokens[first][0] == "not")) and not self._ahead(i) and self._behind(i)
        )

    def _ahead(self, i: int) -> bool:
        """Say whether a finding follows before the next joint or verb."""
        for j in range(i + 1, min(i + PLACES, len(self.marks))):
            entry = self.marks[j].entry
            if self.marks[j].clause != self.marks[i].clause:
                return False
            if j in self.content and j not in self.healthy:
                return True
            if entry.struct in ("comma", "and", "with", "which", *VERBS):
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
            if marks[j].clause != marks[i].clause or entry.struct in ("with", "which", *VERBS):
                break
            if entry.struct in BOUNDARY:
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

    def _denied(self, place: int, at: int) -> list[tuple[str, int]]:
        """Return the cue that denies a place whose sign stands behind a verb: "no node was large"."""
        if not any(mark.entry.struct in VERBS for mark in self.marks[place:at]):
            return []
        return [cue for cue in self._before(place) if cue[0] in ("absent", "unsaid")]

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
            if self.marks[k].clause != self.marks[j].clause or self.marks[k].entry.struct in VERBS:
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
            boundary |= struct in BOUNDARY
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
        near = sorted(
            (abs(mark - claim.at), kind) for kind, mark in kinds.items() if kind in ("unchanged", "changed")
        )
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
            if end - start > PLACES or self.marks[start].clause != self.marks[end].clause:
                continue
            marks = self.marks[start + 1 : end]
            between = {"cue" if mark.entry.pre or mark.entry.post else mark.entry.struct for mark in marks}
            open_choice = "or" in between and between <= _CHOICE
            if "versus" in between or (
                open_choice and {c.finding for c in first} != {c.finding for c in second}
            ):
                for claim in (*first, *second):
                    if claim.state == "present" and claim.cue < 0:
                        self._set(claim, "uncertain", start + 1)
