r"""The text of HL7 v2 fields: delimiters, character sets, escape sequences, time stamps."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

__all__ = ["Delimiters", "charset", "decode", "moment", "unescape"]

_CHARSETS = {  # HL7 table 0211
    "": "",
    "ASCII": "latin-1",
    "8859/1": "latin-1",
    **{f"8859/{part}": f"iso8859-{part}" for part in range(2, 16) if part != 12},
    "UNICODE": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
    "WINDOWS-1252": "cp1252",
    "ISO IR14": "iso2022_jp",
    "ISO IR87": "iso2022_jp",
    "ISO IR159": "iso2022_jp_1",
    "GB 18030-2000": "gb18030",
    "KS X 1001": "euc_kr",
    "CNS 11643-1992": "big5",
    "BIG-5": "big5",
}


@dataclass(frozen=True)
class Delimiters:
    """The five marks of a message (HL7 v2.5 2.5.4); the defaults are what nearly all messages use."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    sub: str = "&"

    @classmethod
    def of(cls, header: str) -> Delimiters | None:
        """Return the marks that an ``MSH`` segment declares, None where they make no sense."""
        marks = header[3:8]
        odd = len(set(marks)) < 5 or any(mark.isalnum() or mark.isspace() for mark in marks)
        return None if odd else cls(*marks)


def charset(name: str) -> str:
    """Return Python's name of a character set of table 0211, "" for an unknown one."""
    return _CHARSETS.get(name.strip().upper(), "")


def decode(data: bytes, encoding: str) -> str:
    """Decode by the declared character set; where that fails, as UTF-8, Windows-1252 or Latin-1."""
    for name in (encoding, "utf-8", "cp1252"):
        if name:
            try:
                return data.decode(name)
            except UnicodeDecodeError:
                continue
    return data.decode("latin-1")


def moment(value: str) -> str:
    """Return a time stamp (HL7 v2.5 2.A.22) as 14 digits that sort, in UTC where it names its zone.

    Examples:
        >>> moment("20240102"), moment("202401021530+0200"), moment("yesterday")
        ('20240102000000', '20240102133000', '')
    """
    match = _MOMENT.match(value.strip())
    if not match:
        return ""
    digits = "".join(part or filler for part, filler in zip(match.groups()[:6], _FILLERS, strict=True))
    try:
        when = datetime.datetime.strptime(digits, "%Y%m%d%H%M%S")
        if zone := match.group(8):
            sign = -1 if zone[0] == "+" else 1
            when += sign * datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    except (ValueError, OverflowError):
        return ""
    return when.strftime("%Y%m%d%H%M%S").rjust(14, "0")


_MOMENT = re.compile(r"([0-9]{4})" + r"([0-9]{2})?" * 5 + r"(\.[0-9]+)?([+-][0-9]{4})?")
_FILLERS = ("", "01", "01", "00", "00", "00")


DEFAULT = Delimiters()


def unescape(text: str, *, marks: Delimiters = DEFAULT, encoding: str = "utf-8") -> str:
    r"""Replace the escape sequences of a text field (HL7 v2.5 2.7); what is none of them stays as it is.

    Delimiters ``\F\ \S\ \T\ \R\ \E\``; line breaks ``\.br\ \.sp2\``, indents and other formatting commands;
    bytes ``\X0D0A\``; highlighting and foreign character sets are left out.

    Examples:
        >>> unescape("Size 3 \\T\\ 4 cm.\\.br\\No effusion.")
        'Size 3 & 4 cm.\nNo effusion.'
    """
    quoted = re.escape(marks.escape)
    literal = {
        "F": marks.field,
        "S": marks.component,
        "R": marks.repetition,
        "E": marks.escape,
        "T": marks.sub,
        "P": "#",
        "H": "",
        "N": "",
    }

    def said(match: re.Match[str]) -> str:
        code = match.group(1)
        if code in literal:
            return literal[code]
        if code.startswith("."):
            return _formatting(code)
        if code[0] == "X":
            return decode(bytes.fromhex(code[1:]), encoding)
        return ""

    return re.sub(rf"{quoted}({_CODES}){quoted}", said, text).replace("\r\n", "\n").replace("\r", "\n")


_CODES = r"[FSRETPHN]|\.[A-Za-z]{2}[+-]?[0-9]{0,4}|X(?:[0-9A-Fa-f]{2}){1,200}|[CMZ][0-9A-Fa-f]{0,12}"


def _formatting(code: str) -> str:
    name, count = code[1:3].lower(), code[3:].lstrip("+")
    if name in ("br", "ce"):
        return "\n"
    if name == "sp":
        return "\n" * min(int(count) if count.isdigit() else 1, 20)
    return " " if name in ("sk", "ti", "in") else ""
