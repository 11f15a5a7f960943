"""RELIABILITY row 26: hostile YAML and JSON give a ConfigError, quickly; the rest reads back."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvl.config import MAX_BYTES, MAX_DEPTH, MAX_NODES, dump_yaml, parse_json, parse_yaml, read_config
from medvl.errors import ConfigError


def bomb(levels: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "!!python/object/apply:os.system [echo]",
            r"line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: !!python/name:os.system x", "the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: !local x", "the tag '!local'"),
        ("a: 1\na: 2", "line 2: the key 'a' is given twice"),
        ("a:\n  b: 1\n  b: 2", "line 3: the key 'b' is given twice"),
        ("a: &x 1\nb: *x", r"line 2: the alias '\*x' is refused"),
        ("1: a", "the key 1 is not a word"),
        ("[" * 1_000_000, f"nested more than {MAX_DEPTH} levels"),
        ("- " * 200 + "x", f"nested more than {MAX_DEPTH} levels"),
        ("a: [1", "not valid YAML at line 1"),
        ("a: \x00", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("x" * (MAX_BYTES + 1), f"allowed are {MAX_BYTES}"),
    ],
)
def test_hostile_yaml_is_refused_quickly(text, message):
    start = time.process_time()
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text)
    assert time.process_time() - start < 5


def test_alias_bomb_is_refused_at_its_first_alias():
    start = time.process_time()
    with pytest.raises(ConfigError, match=r"line 2: the alias '\*a0'"):
        parse_yaml(bomb())
    assert time.process_time() - start < 1


def test_too_many_values_are_refused():
    with pytest.raises(ConfigError, match=f"more than {MAX_NODES} values"):
        parse_yaml("[" + "1," * (MAX_NODES + 1) + "]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} levels"),
        ('{"a": NaN}', "the number NaN is refused"),
        ("[-Infinity]", "the number -Infinity is refused"),
        ("9" * 5000, "not valid JSON"),
        ('{"a": ', "not valid JSON"),
        ("[" + "1," * (MAX_NODES + 1) + "1]", f"more than {MAX_NODES} values"),
    ],
)
def test_hostile_json_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_json(text)


def test_brackets_inside_words_do_not_nest():
    text = json.dumps({"a": "[" * 500, "b": 'x"[{' * 100})
    assert parse_json(text) == json.loads(text)


def test_scalars_are_those_of_yaml_12():
    # YAML 1.2.2 §10.3.2 (core schema): only true/false are booleans, 1e-4 is a float, no dates, no base 60
    text = "[no, on, true, False, 1e-4, .5, -3, 007, 1:30, 2020-01-01, ~, null, 1.]"
    expected = ["no", "on", True, False, 1e-4, 0.5, -3, "007", "1:30", "2020-01-01", None, None, 1.0]
    assert parse_yaml(text) == expected


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Cn"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_dumped_reads_back(values):
    assert parse_yaml(dump_yaml(values)) == values


@given(st.text(max_size=200))
def test_no_text_escapes_with_another_error(text):
    for parse in (parse_yaml, parse_json):
        try:
            parse(text)
        except ConfigError as error:
            assert str(error)


def test_read_config_names_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"ends in '\.toml'"):
        read_config(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 \(byte 3\)"):
        read_config(tmp_path / "b.yaml")
    (tmp_path / "c.json").write_text('{"a": 1}')
    (tmp_path / "d.yml").write_text("a: 1")
    assert read_config(tmp_path / "c.json") == read_config(tmp_path / "d.yml") == {"a": 1}
