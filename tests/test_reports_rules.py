"""The rules of the report parsers: plain data, complete, and fixed for each version."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medvl.errors import ConfigError
from medvl.preprocess.reports import parse_report
from medvl.preprocess.reports.rules import PARSERS, load_rules, parser_data


def test_an_unknown_parser_is_refused():
    with pytest.raises(ConfigError, match=r"unknown report parser 'en-2'.*'en-1'"):
        parse_report("Clear.", parser="en-2")


RULES = {"de-1": "2109953ffd652c00", "en-1": "9d53ff6233a80878", "es-1": "8f16798c3d4f223e"}


@pytest.mark.parametrize("parser", PARSERS)
def test_rules_that_change_need_a_new_version(parser):
    """A store names the rules by version alone, so the rules of a version never change."""
    language = parser.partition("-")[0]
    state = hashlib.blake2b(digest_size=8)
    state.update(resources.files("medvl.preprocess.reports").joinpath(f"rules_{parser}.yaml").read_bytes())
    state.update(resources.files("medvl.specs").joinpath(f"abbreviations_{language}.yaml").read_bytes())
    assert state.hexdigest() == RULES[parser]


@pytest.mark.parametrize("parser", PARSERS)
def test_every_phrase_of_a_tag_holds_a_letter_of_its_gate(parser):
    """The gate only saves time: nothing that a phrase can match may be without one of its parts."""
    for rule in parser_data(parser)["tags"].values():
        for phrase in rule.get("phrases", ()):
            check_gate(phrase, rule["gate"])


def check_gate(phrase: str, gate: list[str]) -> None:
    @settings(max_examples=15, deadline=None, database=None)
    @given(st.from_regex(re.compile(phrase, re.ASCII)))
    def check(text: str) -> None:
        assert any(part in text for part in gate), (phrase, text)

    check()


@pytest.mark.parametrize("parser", PARSERS)
def test_every_language_has_every_list(parser):
    assert parser_data(parser).keys() >= parser_data("en-1").keys() - {"numbered", "titles"}
    rules = load_rules(parser)
    assert set(rules.headings.values()) >= {"findings", "impression", "indication", "technique", "comparison"}
    assert rules.strict <= set(rules.headings)
    assert set(rules.main) <= set(rules.headings)
    assert set(rules.counted) == {"negation", "side", "comparator", "number"}


def test_the_rules_are_plain_words():
    """In YAML a bare ``no`` is a truth value; here it must stay a word."""
    assert "no" in load_rules("en-1").priors.negations
    assert yaml.safe_load("[no]") == [False]
