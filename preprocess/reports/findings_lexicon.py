"""The words that name findings, their places and their states, compiled from data into one tree of words."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from medvl.errors import ConfigError, nearest
from medvl.records import LabelState

__all__ = [
    "VOCABULARIES",
    "Entry",
    "Lexicon",
    "Mark",
    "Sign",
    "Token",
    "load_lexicon",
    "marks_of",
    "tokens_of",
]

VOCABULARIES = ("cxr", "ct")
"""The 14 observations of CheXpert, and the 18 abnormalities of CT-RATE."""

Tree = dict[str, Any]
Token = tuple[str, int, int]
"""A word in the spelling of the patterns, and its span in the text."""

_LEAF = ""
_WORD = re.compile(
    r"\b[Ww]/[Oo]?(?![^\W_])|\b[Bb]/[Ll]\b"
    r"|[^\W\d_]+(?:['’]t\b)?|\d+(?:[.,]\d+)*|\n[ \t\r]*\n|[^\w\s]"
)
_LONGEST_WORD = 24
_SHORTEST_MISSPELT = 8
_FILLERS = 3


@dataclass(frozen=True, eq=False)
class Sign:
    """A word that is a finding only at some place, or unless it is at another.

    Attributes:
        sites: place to the findings it makes there, with their states.
        default: what it makes where no competing place is named; empty for none.
        competing: the places that claim it; one that is not in ``sites`` takes it away.
        normal: it says that the place is healthy, so that cues do not change its state.
    """

    sites: dict[str, dict[str, LabelState]]
    default: dict[str, LabelState]
    competing: frozenset[str]
    normal: bool


@dataclass(eq=False)
class Entry:
    """All that one pattern of words can be: a finding, a sign, a place, a cue, a joint of the sentence."""

    findings: tuple[str, ...] = ()
    signs: tuple[Sign, ...] = ()
    sites: frozenset[str] = frozenset()
    pre: str = ""
    post: str = ""
    struct: str = ""
    verb: bool = False

    @property
    def content(self) -> bool:
        """Whether the words may name a finding."""
        return bool(self.findings or self.signs)


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A vocabulary ready for use.

    Attributes:
        findings: names, in the order of the vocabulary.
        devices: those of them that can be taken out.
        normal: the finding that stands for "nothing found", or "".
        tree: word → … → entry.
        spelling: inflected or other spelling → word of the patterns.
        misspelt: long words of findings with one letter left out → the word.
        fillers: words that may stand inside a pattern.
        abbreviations: words whose full stop ends no sentence.
    """

    findings: tuple[str, ...]
    devices: frozenset[str]
    normal: str
    tree: Tree
    spelling: dict[str, str]
    misspelt: dict[str, str]
    fillers: frozenset[str]
    abbreviations: frozenset[str]

    def word(self, token: str) -> str:
        """Return a lower-case token in the spelling of the patterns."""
        known = self.spelling.get(token)
        if known is not None:
            return known
        if _SHORTEST_MISSPELT - 1 <= len(token) <= _LONGEST_WORD and token.isalpha():
            return self._guess(token)
        return token

    def _guess(self, token: str) -> str:
        """Find the long word that one wrong, missing, doubled or swapped letter turned into the token."""
        for reading in itertools.chain((token,), _shortened(token)):
            if reading in self.misspelt:
                return self.misspelt[reading]
        return token


@dataclass(slots=True)
class Mark:
    """A pattern found in a sentence: tokens ``first`` to ``last`` inclusive."""

    first: int
    last: int
    entry: Entry
    clause: int = 0


@functools.cache
def load_lexicon(vocabulary: str) -> Lexicon:
    """Read and compile a vocabulary.

    Raises:
        ConfigError: there is no such vocabulary.
    """
    if vocabulary not in VOCABULARIES:
        raise ConfigError(f"unknown vocabulary '{vocabulary}'.", hint=nearest(vocabulary, VOCABULARIES))
    folder = Path(__file__).parent
    cues = yaml.safe_load((folder / "findings_cues.yaml").read_text("utf-8"))
    words = yaml.safe_load((folder / f"findings_{vocabulary}.yaml").read_text("utf-8"))
    build = _Builder(cues["classes"], cues["spelling"])
    build.name(words, cues["sites"])
    nouns = frozenset(build.words)
    build.surround(cues, words["ignore"])
    return Lexicon(
        findings=tuple(words["findings"]),
        devices=frozenset(words["devices"]),
        normal=words.get("normal", ""),
        tree=build.tree,
        spelling=_spellings(build.words, nouns, cues),
        misspelt=_misspellings(build.words, nouns),
        fillers=frozenset(cues["classes"]["filler"]),
        abbreviations=frozenset(cues["abbreviations"]),
    )


class _Builder:
    """Expands patterns into the tree and joins what several of them say of the same words."""

    def __init__(self, classes: dict[str, list[str]], spelling: dict[str, str]) -> None:
        self.classes = classes
        self.spelling = spelling
        self.tree: Tree = {}
        self.words: set[str] = set()
        self.verbs = frozenset(classes["be"]) | {
            "may",
            "might",
            "could",
            "cannot",
            "can",
            "should",
            "has",
            "have",
            "had",
        }

    def name(self, words: dict[str, Any], sites: dict[str, list[str]]) -> None:
        """Add what names a finding: terms, signs and places."""
        for names, patterns in words["terms"].items():
            for pattern in patterns:
                self.add(pattern, findings=tuple(names.split()))
        for rule in words["signs"].values():
            sign = Sign(
                sites=rule["sites"],
                default=rule.get("default", {}),
                competing=frozenset(rule.get("competing", rule["sites"])),
                normal=rule.get("normal", False),
            )
            for pattern in rule["words"]:
                self.add(pattern, sign=sign)
        for site, patterns in sites.items():
            for pattern in patterns:
                self.add(pattern, site=site)

    def surround(self, cues: dict[str, Any], ignore: list[str]) -> None:
        """Add cues, joints, and words that only look like one of them or like a finding."""
        for kind, sides in cues["cues"].items():
            for side, patterns in sides.items():
                for pattern in patterns:
                    self.add(pattern, kind=kind, side=side)
        for struct, patterns in cues["struct"].items():
            for pattern in patterns:
                self.add(pattern, struct=struct)
        for pattern in itertools.chain(cues["neutral"], ignore):
            self.add(pattern)

    def add(
        self,
        pattern: str,
        *,
        findings: tuple[str, ...] = (),
        sign: Sign | None = None,
        site: str = "",
        kind: str = "",
        side: str = "",
        struct: str = "",
    ) -> None:
        for words in self._expand(pattern):
            entry = self._entry(words)
            entry.findings = tuple(dict.fromkeys(entry.findings + findings))
            if sign is not None and sign not in entry.signs:
                entry.signs = (*entry.signs, sign)
            entry.sites |= {site} if site else frozenset()
            entry.pre = kind if side in ("pre", "both") else entry.pre
            entry.post = kind if side in ("post", "both") else entry.post
            entry.struct = struct or entry.struct
            entry.verb = entry.struct in ("verb", "verbs", "exist") or bool(kind and self.verbs & set(words))

    def _expand(self, pattern: str) -> Iterator[tuple[str, ...]]:
        choices = []
        for piece in pattern.split():
            optional = piece.endswith("~")
            each = (piece[:-1] if optional else piece).split("|")
            names = [word for name in each for word in (self.classes[name[1:]] if name[0] == "$" else [name])]
            choices.append([self.spelling.get(name, name) for name in names] + [""] * optional)
        for row in itertools.product(*choices):
            words = tuple(word for word in row if word)
            if words:
                yield words

    def _entry(self, words: tuple[str, ...]) -> Entry:
        self.words.update(words)
        node = self.tree
        for word in words:
            node = node.setdefault(word, {})
        return cast(Entry, node.setdefault(_LEAF, Entry()))


def _spellings(words: set[str], nouns: frozenset[str], cues: dict[str, Any]) -> dict[str, str]:
    """Map every known form of a word to the word."""
    spelling = {form: word for noun in nouns for form, word in _plurals(noun) if form not in words}
    # Words of ordinary sentences are known as they stand, and so are never taken for a misspelling.
    return spelling | {word: word for word in (*words, *cues["ordinary"])} | cues["spelling"]


def _plurals(noun: str) -> Iterator[tuple[str, str]]:
    if len(noun) < 4 or not noun.isalpha():
        return
    if noun.endswith(("s", "x", "ch", "sh")):
        yield f"{noun}es", noun
    elif noun.endswith("y") and noun[-2] not in "aeiou":
        yield f"{noun[:-1]}ies", noun
    else:
        yield f"{noun}s", noun
    if noun.endswith("is"):
        yield f"{noun[:-2]}es", noun


def _misspellings(words: set[str], nouns: frozenset[str]) -> dict[str, str]:
    long = sorted(word for word in nouns if len(word) >= _SHORTEST_MISSPELT and word.isalpha())
    table = {short: word for word in long for short in _shortened(word) if short not in words}
    return table | {word: word for word in long}


def _shortened(word: str) -> Iterator[str]:
    """Leave out one letter after the first."""
    for place in range(1, len(word)):
        yield word[:place] + word[place + 1 :]


def tokens_of(text: str, lexicon: Lexicon) -> list[Token]:
    """Part a text into words, numbers and marks; a full stop that ends no sentence is left out."""
    tokens: list[Token] = []
    for match in _WORD.finditer(text):
        raw, start, end = match.group().lower().replace("’", "'"), match.start(), match.end()
        if raw[0] == "\n":
            raw = "."
        elif raw == ".":
            follows = text[end : end + 1]
            if follows.isalnum() and not follows.isupper():
                continue
            if tokens and tokens[-1][2] == start and tokens[-1][0] in lexicon.abbreviations:
                continue
        elif (
            (raw == "-" or raw == "‐") and text[start - 1 : start].isalnum() and text[end : end + 1].isalnum()
        ):
            continue  # a hyphen inside a word
        tokens.append((lexicon.word(raw), start, end))
        if (
            raw == "?"
            and len(tokens) > 1
            and text[end : end + 1].isspace()
            and text[end + 1 : end + 2].isupper()
        ):
            tokens.append((".", end, end))
    return tokens


def marks_of(tokens: list[Token], lexicon: Lexicon) -> list[Mark]:
    """Find the patterns: at each place the longest one."""
    tree = lexicon.tree
    words = [token[0] for token in tokens]
    marks = []
    here, size = 0, len(words)
    while here < size:
        node = tree.get(words[here])
        if node is not None:
            last, entry = _longest(node, words, here + 1, lexicon.fillers)
            if entry is not None:
                marks.append(Mark(here, last, entry))
                here = last
        here += 1
    return marks


def _longest(
    node: Tree, words: list[str], place: int, fillers: frozenset[str], skipped: int = 0
) -> tuple[int, Entry | None]:
    """Return the last token and the entry of the longest pattern that goes on at ``place``."""
    last, best = place - 1, node.get(_LEAF)
    while place < len(words):
        word = words[place]
        follow = node.get(word)
        if word in fillers and skipped < _FILLERS:
            skipped += 1
            if follow is not None:  # the word may belong to the pattern or be passed over
                end, entry = _longest(follow, words, place + 1, fillers, skipped)
                if entry is not None and end > last:
                    last, best = end, entry
            follow = node
        elif follow is None:
            break
        node = follow
        place += 1
        entry = node.get(_LEAF)
        if entry is not None and word not in fillers and place - 1 > last:
            last, best = place - 1, entry
    return last, best
