"""What each stage of an adaptation shows the model, and the loss of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from medvl.corpus import ReportCase, Wording
from medvl.language.contrast import simcse_loss
from medvl.language.decoder import Decoder
from medvl.language.masked import hide_tokens, next_token_loss, next_token_targets, states_before
from medvl.language.options import Supervised
from medvl.progress import Progress
from medvl.tokens import ReportTokeniser

__all__ = ["CausalTask", "ContrastTask", "MaskedTask", "Reword", "SupervisedTask", "Task", "parts"]

Reword = Callable[..., tuple[Wording, ...]]
"""``reword(case, seed=…)``: the other wordings of a case."""
Text = tuple[str, ...]


@runtime_checkable
class Task(Protocol):
    """One stage: examples of known length, and the loss of some of them."""

    lengths: Int64[np.ndarray, " examples"]

    def loss(self, decoder: Decoder, rows: Sequence[int], *, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the loss of these examples."""
        ...


def parts(texts: Sequence[Text], *, tokeniser: ReportTokeniser) -> list[Text]:
    """Cut texts between sentences so that each fits into the tokeniser's length; nothing is lost.

    A sentence that is itself too long stays alone. Empty texts are left out.
    """
    made: list[Text] = []
    for text in texts:
        lengths = tokeniser.lengths([[sentence] for sentence in text]).tolist()
        frame = int(tokeniser.lengths([[]])[0])
        part: list[str] = []
        room = tokeniser.max_tokens - frame
        for sentence, length in zip(text, lengths, strict=True):
            if part and length - frame > room:
                made.append(tuple(part))
                part, room = [], tokeniser.max_tokens - frame
            part.append(sentence)
            room -= length - frame
        if part:
            made.append(tuple(part))
    return made


def _tensors(decoder: Decoder, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    device = next(decoder.tower.parameters()).device
    tokens, mask = decoder.tokeniser.encode(texts)
    return torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


class CausalTask:
    """Next-token prediction over whole reports, long ones in parts."""

    def __init__(self, texts: Sequence[Text], *, tokeniser: ReportTokeniser) -> None:
        self.texts = parts(texts, tokeniser=tokeniser)
        self.lengths = tokeniser.lengths(self.texts)

    def loss(self, decoder: Decoder, rows: Sequence[int], *, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the next token, in nats."""
        tokens, mask = _tensors(decoder, [self.texts[row] for row in rows])
        states, targets = states_before(decoder.tower.states(tokens, mask), next_token_targets(tokens, mask))
        return next_token_loss(decoder.logits(states), targets)


class MaskedTask(CausalTask):
    """Masked next-token prediction over the same texts."""

    def __init__(self, texts: Sequence[Text], *, tokeniser: ReportTokeniser, rate: float) -> None:
        super().__init__(texts, tokeniser=tokeniser)
        self.rate = rate

    def loss(self, decoder: Decoder, rows: Sequence[int], *, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the hidden tokens, in nats."""
        tokens, mask = _tensors(decoder, [self.texts[row] for row in rows])
        seen, hidden = hide_tokens(
            tokens, mask, rate=self.rate, mask_id=decoder.mask_id, generator=_generator(rng)
        )
        states, targets = states_before(decoder.tower.states(seen, mask), hidden)
        return next_token_loss(decoder.logits(states), targets)


class ContrastTask(CausalTask):
    """SimCSE without labels: a text against itself under other dropout."""

    def __init__(self, texts: Sequence[Text], *, tokeniser: ReportTokeniser, scale: float) -> None:
        super().__init__(texts, tokeniser=tokeniser)
        self.scale = scale

    def loss(self, decoder: Decoder, rows: Sequence[int], *, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the contrast of two passes; equal texts of a batch are no negatives of each other."""
        tokens, mask = _tensors(decoder, [self.texts[row] for row in rows])
        both = decoder.tower.pool(tokens.repeat(2, 1), mask.repeat(2, 1))
        same = (tokens[:, None] == tokens[None]).all(-1)
        return simcse_loss(both[: len(rows)], both[len(rows) :], scale=self.scale, same=same)


class SupervisedTask:
    """Contrast of two wordings of a report, with other reports and changed facts as negatives.

    The wordings of every case are made once. A step draws for each case a pair of different wordings, more
    often with the report itself than not, and hard negatives.

    Args:
        cases: reports.
        tokeniser: gives the lengths.
        variants, hard_negatives: give the wordings.
        options: of the stage.
        seed: of the wordings.
        progress: told about each case.
    """

    def __init__(
        self,
        cases: Sequence[ReportCase],
        *,
        tokeniser: ReportTokeniser,
        variants: Reword,
        hard_negatives: Reword,
        options: Supervised,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self.options = options
        self.texts: list[tuple[Text, list[Text], list[Text]]] = []
        cut = [part for case in cases for part in _windows(case, most=options.window)]
        for number, case in enumerate(cut, start=1):
            others = [wording.sentences for wording in variants(case, seed=seed)]
            others = [text for text in others if text and text != case.sentences]
            wrong = [wording.sentences for wording in hard_negatives(case, seed=seed)]
            if others:
                self.texts.append((case.sentences, others, wrong))
            if progress is not None:
                progress(number, len(cut), "rewording")
        self.lengths = tokeniser.lengths([text for text, _, _ in self.texts])

    def draw(
        self, rows: Sequence[int], *, rng: np.random.Generator
    ) -> tuple[list[Text], list[Text], list[Text], Bool[np.ndarray, "batch columns"]]:
        """Return anchors, positives, hard negatives, and which column says the same as which anchor."""
        anchors: list[Text] = []
        positives: list[Text] = []
        negatives: list[Text] = []
        for row in rows:
            report, others, wrong = self.texts[row]
            order = rng.permutation(len(others))
            pair = [report, others[order[0]]]
            if len(others) > 1 and rng.random() < 0.3:
                pair = [others[order[0]], others[order[1]]]
            if rng.random() < 0.5:
                pair.reverse()
            anchors.append(pair[0])
            positives.append(pair[1])
            chosen = rng.permutation(len(wrong))[: self.options.hard]
            negatives += [wrong[k] for k in chosen]
        reports = [self.texts[row][0] for row in rows]
        same = np.zeros((len(rows), len(rows) + len(negatives)), bool)
        for i, (anchor, positive, report) in enumerate(zip(anchors, positives, reports, strict=True)):
            equal = {anchor, positive, report}
            same[i, : len(rows)] = [
                other == report or text in equal for other, text in zip(reports, positives, strict=True)
            ]
            same[i, len(rows) :] = [text in equal for text in negatives]
        return anchors, positives, negatives, same

    def loss(self, decoder: Decoder, rows: Sequence[int], *, rng: np.random.Generator) -> Float[Tensor, ""]:
        """Return the contrast; what reads the same after the cut to ``max_tokens`` is no negative."""
        anchors, positives, negatives, same = self.draw(rows, rng=rng)
        tokens, mask = _tensors(decoder, [*anchors, *positives, *negatives])
        equal = (tokens[: len(rows), None] == tokens[None, len(rows) :]).all(-1)
        pooled = decoder.tower.pool(tokens, mask)
        return simcse_loss(
            pooled[: len(rows)],
            pooled[len(rows) :],
            scale=self.options.scale,
            same=equal | torch.from_numpy(same).to(equal.device),
        )


def _windows(case: ReportCase, *, most: int | None) -> list[ReportCase]:
    """Return the case and, if it is long, its parts of ``most`` sentences as cases."""
    if most is None or len(case.sentences) <= most:
        return [case]
    cuts = [case.sentences[start : start + most] for start in range(0, len(case.sentences), most)]
    return [
        case,
        *(
            replace(case, case_id=f"{case.case_id}:{k}", sentences=cut, findings=(), impression=())
            for k, cut in enumerate(cuts)
            if len(cut) > 1
        ),
    ]
