"""Words to token ids: one tokenizer.json, whole reports in, ids and sentence numbers out.

Contract room: it imports ``tokenizers`` and NumPy, neither torch nor transformers.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from medvl.errors import CheckpointError, ConfigError, file_token
from medvl.store import write_atomic

__all__ = ["ReportTokeniser", "train_tokeniser"]

FILE = "tokenizer.json"
MAX_BYTES = 64 * 2**20
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A number with its inner points stays one word ("4.2", "1,000", "12/03"), as does a word with an apostrophe;
# any other sign is a word of its own, so "<5mm" is "<", "5", "mm".
_WORD = r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|[^\s]"
# Every sign of these may stand anywhere in a word and still be spelled: a number is never [UNK].
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzàáâãäåæçèéêëìíîïñòóôõöøùúûüýßµμ"
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~°±×÷≤≥≈²³–—’“”•…"
_MIN_COUNT = 2  # a pair seen once is a typing error more often than a word
_REMEMBERED, _REMEMBERED_CHARS = 2**15, 512  # sentences whose ids are kept, and their longest: some 50 MB
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")
_PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "<|finetune_right_pad_id|>")


class ReportTokeniser:
    """A ``tokenizers`` tokenizer that takes a report as a list of sentences.

    A report becomes ``start s1 s2 … end``, where ``start`` and ``end`` are what the file's own
    post-processor adds ([CLS] and [SEP] for BERT, <s> and </s> for RoBERTa, begin-of-text for Llama). A
    tokenizer that adds nothing (Qwen) gets its end-of-text token as ``end``, so that no report is empty.
    Strings that look like special tokens are spelled like any other words.

    Args:
        tokenizer: a fast tokenizer of any family.
        max_tokens: longest sequence, special tokens included; ``None`` takes what the file says, else 128.

    Attributes:
        pad_id: the id that fills short rows; it is masked out.
        vocab_size: number of ids.
        continuation: for each id, whether it continues the word of the id before it.
        digest: hash of the file that :meth:`save` writes.

    Raises:
        ConfigError: ``max_tokens`` leaves no room for words, or no special token can end a report.

    Examples:
        >>> tokeniser = train_tokeniser(["small left effusion . no change"] * 9)
        >>> tokens, mask = tokeniser.encode([["Small effusion", "no change"], []])
        >>> mask.tolist()
        [[-1, 1, 1, 2, 2, -1], [-1, -1, 0, 0, 0, 0]]
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int | None = None) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        values: dict[str, Any] = json.loads(self._tokenizer.to_str())
        if max_tokens is None:
            max_tokens = int((values.get("truncation") or {"max_length": 128})["max_length"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._start, self._end = self._frame()
        self.max_tokens = max_tokens
        if max_tokens < len(self._start) + len(self._end) + 1:
            raise ConfigError(
                f"max_tokens is {max_tokens}, which leaves no room for a word.",
                hint=f"Allowed are {len(self._start) + len(self._end) + 1} or more.",
            )
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.pad_id = self._pad(values)
        self._byte_level = "ByteLevel" in json.dumps([values.get("pre_tokenizer"), values.get("decoder")])
        self.continuation = self._continuation(values)
        self._make_self_describing()
        self._json = self._tokenizer.to_str()
        self.digest = hashlib.blake2b(self._json.encode(), digest_size=8).hexdigest()
        # After the text is fixed: "[SEP]" inside a report is data, never a token of ours.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        # Reports repeat their sentences, and every epoch repeats all of them.
        self._pieces = functools.lru_cache(maxsize=_REMEMBERED)(self._spell)

    def _frame(self) -> tuple[list[int], list[int]]:
        encoded = self._tokenizer.encode("a", add_special_tokens=True)
        special = np.asarray(encoded.special_tokens_mask, bool)
        inner = np.flatnonzero(~special)
        first, last = (int(inner[0]), int(inner[-1]) + 1) if inner.size else (len(special), len(special))
        start, end = list(encoded.ids[:first]), list(encoded.ids[last:])
        if not start and not end:
            end = [self._first_of(_END_NAMES)]
        return start, end

    def _first_of(self, names: tuple[str, ...]) -> int:
        for name in names:
            found = self._tokenizer.token_to_id(name)
            if found is not None:
                return int(found)
        raise ConfigError(
            "the tokenizer has no token that ends or pads a text.",
            hint=f"One of these is needed: {', '.join(names)}.",
        )

    def _pad(self, values: dict[str, Any]) -> int:
        if values.get("padding"):
            return int(values["padding"]["pad_id"])
        try:
            return self._first_of(_PAD_NAMES)
        except ConfigError:
            return (self._end or self._start)[0]  # it is masked out, so any id does

    def _continuation(self, values: dict[str, Any]) -> Bool[np.ndarray, " vocab"]:
        model = values["model"]
        added = {token["id"] for token in values.get("added_tokens", ())}
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        result = np.zeros(max(vocab.values()) + 1, bool)
        self.vocab_size = len(result)
        prefix = model.get("continuing_subword_prefix")
        for token, index in vocab.items():
            if index in added or model.get("end_of_word_suffix"):
                continue  # a vocabulary that marks word ends says nothing here: each piece is a word
            if model["type"] in ("WordPiece", "WordLevel") or prefix:
                result[index] = bool(prefix) and token.startswith(prefix)
            elif self._byte_level:
                result[index] = token[0] not in "ĠĊĉč"  # GPT-2's names of blank, newline, tab, return
            else:
                result[index] = not token.startswith("▁")  # SentencePiece's blank
        return result

    def _make_self_describing(self) -> None:
        """Write frame, length and padding into the file, so that it needs no companion."""
        names = {i: self._tokenizer.id_to_token(i) for i in {*self._start, *self._end}}
        pieces = [*(names[i] for i in self._start), "$A", *(names[i] for i in self._end)]
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=[(name, i) for i, name in sorted(names.items())]
        )
        self._tokenizer.enable_padding(pad_id=self.pad_id, pad_token=self._tokenizer.id_to_token(self.pad_id))
        self._tokenizer.enable_truncation(self.max_tokens)

    @classmethod
    def from_file(cls, path: str | Path, *, max_tokens: int | None = None) -> ReportTokeniser:
        """Read a ``tokenizer.json``.

        Raises:
            CheckpointError: the file is missing, above 64 MiB, or not a tokenizer.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(
                f"there is no tokenizer file {file_token(path)}.",
                hint="Point to a tokenizer.json; slow tokenizers (vocab.txt alone) must be converted first.",
            )
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(
                f"the tokenizer {file_token(path)} has {path.stat().st_size} bytes; allowed are {MAX_BYTES}."
            )
        text = path.read_text("utf-8", "replace")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file_token(path)} is not a tokenizer.json: {error}.") from error
        return cls(tokenizer, max_tokens=max_tokens)

    @classmethod
    def from_directory(cls, path: str | Path, *, max_tokens: int | None = None) -> ReportTokeniser:
        """Read the ``tokenizer.json`` of a directory."""
        return cls.from_file(Path(path) / FILE, max_tokens=max_tokens)

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` into ``directory``; it also holds the frame and ``max_tokens``."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILE, self._json.encode())

    def words(self, sentence: str) -> list[str]:
        """Return the pieces of one sentence, for people to read."""
        return list(self._tokenizer.encode(_utf8(sentence), add_special_tokens=False).tokens)

    def vocabulary(self) -> list[str]:
        """Return the spelling of each id; nothing for one that is not in use."""
        return [self._tokenizer.id_to_token(index) or "" for index in range(self.vocab_size)]

    def token_id(self, *names: str) -> int | None:
        """Return the id of the first of these tokens that the vocabulary has, or None."""
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((int(index) for index in found if index is not None), None)

    def lengths(self, reports: Sequence[Sequence[str]]) -> Int64[np.ndarray, " reports"]:
        """Return each report's number of tokens before truncation; ``> max_tokens`` is cut."""
        return np.array([len(ids) for ids, _ in map(self._flat, reports)], np.int64)

    def encode(
        self, reports: Sequence[Sequence[str]]
    ) -> tuple[Int64[np.ndarray, "reports tokens"], Int64[np.ndarray, "reports tokens"]]:
        """Return ids and mask, padded on the right to the longest report given.

        The mask is 0 for padding, k >= 1 for a token of the k-th sentence, -1 for a special token. A report
        longer than ``max_tokens`` loses its last words, never its end token; :meth:`lengths` counts them.

        Args:
            reports: each a list of sentences; an empty one becomes its special tokens alone.
        """
        rows = [self._cut(*self._flat(report)) for report in reports]
        lengths = np.array([len(ids) for ids, _ in rows], np.int64)
        length = int(lengths.max(initial=0))
        tokens = np.full((len(rows), length), self.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        real = np.arange(length) < lengths[:, None]  # row by row, as the ids follow one another
        tokens[real] = [token for ids, _ in rows for token in ids]
        mask[real] = [number for _, numbers in rows for number in numbers]
        return tokens, mask

    def _flat(self, report: Sequence[str]) -> tuple[list[int], list[int]]:
        if isinstance(report, str):
            raise ConfigError("a report is a list of sentences, got one string.", hint="Write [text].")
        ids, numbers = list(self._start), [-1] * len(self._start)
        for k, sentence in enumerate(report, start=1):
            # In byte-level vocabularies a word inside a text starts with its blank: "a. B" and not "a.B".
            words = " " + sentence if self._byte_level and k > 1 else sentence
            pieces = self._pieces(words) if len(words) <= _REMEMBERED_CHARS else self._spell(words)
            ids += pieces
            numbers += [k] * len(pieces)
        return ids + self._end, numbers + [-1] * len(self._end)

    def _spell(self, words: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(_utf8(words), add_special_tokens=False).ids)

    def _cut(self, ids: list[int], numbers: list[int]) -> tuple[list[int], list[int]]:
        if len(ids) <= self.max_tokens:
            return ids, numbers
        keep = self.max_tokens - len(self._end)
        return ids[:keep] + self._end, numbers[:keep] + [-1] * len(self._end)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the file's text, for data-loading workers."""
        return {"json": self._json}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the file's text again."""
        self.__init__(Tokenizer.from_str(state["json"]))  # type: ignore[misc]


def train_tokeniser(
    texts: Iterable[str], *, vocab_size: int = 2000, words: Iterable[str] = (), max_tokens: int = 128
) -> ReportTokeniser:
    """Train a lower-cased WordPiece tokeniser on ``texts``; equal texts give equal bytes.

    Numbers keep their points and commas inside one word, comparators and units are words of their own,
    and every digit, Latin letter and common sign can be spelled even if the texts lack it.

    Args:
        texts: sentences or whole reports of the *training* split.
        vocab_size: most ids; the alphabet alone takes some 250.
        words: lower-case words that are given an id of their own besides, be they in ``texts`` or not.
        max_tokens: longest sequence, special tokens included.

    Examples:
        >>> train_tokeniser(["nodule of 4.2 mm , SpO2 < 92 %"] * 9).words("nodule < 92")
        ['nodule', '<', '92']
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.BertNormalizer(lowercase=True, strip_accents=False, handle_chinese_chars=False),
        ]
    )
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_WORD), "isolated")]
    )
    counts: Counter[str] = Counter()
    for text in texts:
        found = splitter.pre_tokenize_str(normalizer.normalize_str(_utf8(text)))
        counts.update(word for word, _ in found)
    pieces = dict.fromkeys([*_SPECIAL, *_wordpieces(counts, vocab_size - len(_SPECIAL)), *words])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return ReportTokeniser(tokenizer, max_tokens=max_tokens)


def _wordpieces(counts: Mapping[str, int], size: int) -> list[str]:
    """Return the alphabet and then the most frequent merges, at most ``size`` pieces in all.

    Byte-pair merging (Sennrich et al. 2016, arXiv 1508.07909) over WordPiece's alphabet. Ties go to the
    alphabetically first pair, so that equal texts give equal vocabularies in every process: the
    library's own trainer walks a hash map and does not.
    """
    words = sorted(counts)
    spelled = [[word[0], *("##" + sign for sign in word[1:])] for word in words]
    letters = {*_LETTERS, *_SIGNS, *("##" + sign for sign in _LETTERS + ".,:/'’")}
    vocab = sorted(letters.union(*spelled) if spelled else letters)
    pairs: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = defaultdict(set)

    def count(index: int, sign: int) -> None:
        for pair in pairwise(spelled[index]):
            pairs[pair] += sign * counts[words[index]]
            places[pair].add(index)

    for index in range(len(words)):
        count(index, 1)
    queue = [(-number, pair) for pair, number in pairs.items()]
    heapq.heapify(queue)
    known = set(vocab)
    while len(vocab) < size and (pair := _most_frequent(queue, pairs)) is not None:
        piece = pair[0] + pair[1].removeprefix("##")
        if piece not in known:
            known.add(piece)
            vocab.append(piece)
        for index in sorted(places.pop(pair)):
            count(index, -1)
            spelled[index] = _merge(spelled[index], pair, piece)
            count(index, 1)
            for new in pairwise(spelled[index]):
                if piece in new:
                    heapq.heappush(queue, (-pairs[new], new))
    return vocab


def _most_frequent(
    queue: list[tuple[int, tuple[str, str]]], pairs: Mapping[tuple[str, str], int]
) -> tuple[str, str] | None:
    while queue:
        negative, pair = heapq.heappop(queue)
        if -negative == pairs[pair]:
            return pair if -negative >= _MIN_COUNT else None
        if -negative > pairs[pair] > 0:  # the count fell since it was queued
            heapq.heappush(queue, (-pairs[pair], pair))
    return None


def _merge(pieces: list[str], pair: tuple[str, str], piece: str) -> list[str]:
    merged: list[str] = []
    for part in pieces:
        if merged and (merged[-1], part) == pair:
            merged[-1] = piece
        else:
            merged.append(part)
    return merged


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates would stop the library
