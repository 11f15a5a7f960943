"""What a search found: as lines, as JSON, as a page with pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from medvl.notice import NOTICE
from medvl.retrieval.vectors import Hit

__all__ = ["Results"]


@dataclass(frozen=True)
class Results(Sequence[Hit]):
    """The hits of one search, best first, with the query that found them.

    Attributes:
        hits: the cases.
        text, where: the query's words and filter.
        query_thumbnail: JPEG bytes of the query image.
    """

    hits: tuple[Hit, ...]
    text: str | None = None
    where: str | None = None
    query_thumbnail: bytes = b""

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.hits)

    def __getitem__(self, item: Any) -> Any:
        """Return one hit, or the results of a slice."""
        return replace(self, hits=self.hits[item]) if isinstance(item, slice) else self.hits[item]

    def to_json(self) -> dict[str, Any]:
        """Return plain values without pictures."""
        return {
            "text": self.text,
            "where": self.where,
            "hits": [hit.to_json() for hit in self.hits],
            "notice": NOTICE,
        }

    def lines(self) -> list[str]:
        """Return the text of the command: one line a hit."""
        if not self.hits:
            return ["No case matches the filter.", NOTICE]
        text = [f"{'rank':>4}  {'score':>6}  {'record':<10}  {'view':<8}  {'findings':<28}  report"]
        for hit in self.hits:
            findings = ", ".join(hit.findings) or "-"
            text.append(
                f"{hit.rank:>4}  {hit.score:>6.3f}  {hit.record_id[:10]:<10}  {hit.view or '-':<8}  "
                f"{_short(findings, 28):<28}  {_short(hit.report or '-', 70)}"
            )
        return [*text, NOTICE]

    def to_html(self) -> str:
        """Return one self-contained page; every text in it is escaped."""
        from jinja2 import Environment

        template = files("medvl.retrieval").joinpath("page.html").read_text("utf-8")
        hits = [{**hit.to_json(), "picture": base64.b64encode(hit.thumbnail).decode()} for hit in self.hits]
        return (
            Environment(autoescape=True)
            .from_string(template)
            .render(
                hits=hits,
                text=self.text,
                where=self.where,
                image=base64.b64encode(self.query_thumbnail).decode(),
                notice=NOTICE,
            )
        )


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
