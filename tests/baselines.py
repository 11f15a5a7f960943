"""Two older ways to label a report, over the same names of findings: keywords, and NegEx.

Both take what our vocabularies call a finding, and differ from our labeller only in what they make of the
words around it. That is generous to them: finding the place of a sign ("calcification … coronary arteries")
is done for them.

NegEx: Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge
summaries", J Biomed Inform 34 (2001), written from its description: (1) mark pseudo-negations, which
negate nothing; (2) a negation phrase before a term negates terms up to five words on; (3) a negation phrase
after a term negates terms up to five words back; (4) words such as "but" end the scope. ``NegEx, adapted``
carries the scope to the end of the sentence, as later versions do, and knows "was not detected" and its
kin, which the translated reports are full of and the English list of 2001 is not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medvl.preprocess.reports.findings_lexicon import load_lexicon, marks_of, tokens_of
from medvl.preprocess.reports.findings_scope import named_in

PSEUDO = (
    "no increase|no suspicious change|no significant change|no change|no interval change|no definite change"
    "|no significant interval change|not extend|not cause|not drain|not certain if|not certain whether"
    "|gram negative|without difficulty|not necessarily|not only|no further|without any further"
    "|without further"
)
BEFORE = (
    "absence of|cannot see|cannot|checked for|declined|declines|denied|denies|denying|evaluate for"
    "|fails to reveal|free of|negative for|never developed|never had|no abnormal|no cause of|no complaints of"
    "|no evidence to suggest|no evidence of|no evidence|no new evidence|no other evidence|no findings of"
    "|no findings to indicate|no mammographic evidence of|no new|no radiographic evidence of|no signs? of"
    "|no significant|no suggestion of|no suspicious|no|not appear|not appreciate|not associated with"
    "|not complain of|not demonstrate|not exhibit|not feel|not had|not have|not know of|not known to have"
    "|not reveal|not see|not to be|not|patient was not|rather than|resolved|test for|to exclude"
    "|rule out|rules out|ruled out|unremarkable for|with no|without any evidence of|without evidence"
    "|without indication of|without signs? of|without"
)
AFTER = "unlikely|free|was ruled out|is ruled out|are ruled out|have been ruled out|has been ruled out"
ADAPTED = (
    "|(?:was|were|is|are) (?:not|no longer) (?:seen|observed|detected|identified|noted|present|found)"
    "|not (?:seen|observed|detected|identified|noted|present|found|visualized)|absent"
)
ENDS = (
    "but|however|nevertheless|yet|though|although|still|aside from|except|apart from|secondary to"
    "|as the cause"
    "|as the source|as the reason|as the etiology|which|who"
)


@dataclass(frozen=True)
class Rules:
    """One version of NegEx: its phrases after a term, and how many words a scope may span."""

    after: str
    words: int


NEGEX = Rules(AFTER, 5)
NEGEX_ADAPTED = Rules(AFTER + ADAPTED, 10_000)


def keywords(sentence: str, *, vocabulary: str) -> set[str]:
    """Return the findings that are named at all."""
    return {finding for finding, _, _ in named(sentence, vocabulary)}


def negex(sentence: str, *, vocabulary: str, rules: Rules = NEGEX) -> dict[str, bool]:
    """Return the findings that are named, and whether NegEx leaves one of their places unnegated."""
    lower = sentence.lower()
    masked = _mask(lower, re.finditer(rf"\b(?:{PSEUDO})\b", lower))
    triggers = [(m.start(), m.end(), "before") for m in re.finditer(rf"\b(?:{BEFORE})\b", masked)]
    triggers += [(m.start(), m.end(), "after") for m in re.finditer(rf"\b(?:{rules.after})\b", masked)]
    ends = [m.start() for m in re.finditer(rf"\b(?:{ENDS})\b|[;.]\s", masked)]
    found: dict[str, bool] = {}
    for finding, start, end in named(sentence, vocabulary):
        negated = any(
            _reaches(lower, (stop, start), ends, rules.words)
            if kind == "before"
            else _reaches(lower, (end, first), ends, rules.words)
            for first, stop, kind in triggers
        )
        found[finding] = found.get(finding, False) or not negated
    return found


def named(sentence: str, vocabulary: str) -> list[tuple[str, int, int]]:
    """Return the findings that a sentence names, with their spans, whatever it says of them."""
    lexicon = load_lexicon(vocabulary)
    tokens = tokens_of(sentence, lexicon)
    return [
        (claim.finding, tokens[mark.first][1], tokens[mark.last][2])
        for claim, mark in named_in(tokens, marks_of(tokens, lexicon), normal=lexicon.normal)
        if not claim.fixed
    ]


def _mask(text: str, matches) -> str:
    for match in matches:
        text = text[: match.start()] + "#" * (match.end() - match.start()) + text[match.end() :]
    return text


def _reaches(text: str, gap: tuple[int, int], ends: list[int], words: int) -> bool:
    """Say whether a scope spans the gap between a trigger and a term."""
    start, stop = gap
    if start > stop or any(start <= end < stop for end in ends):
        return False
    return len(text[start:stop].split()) <= words
