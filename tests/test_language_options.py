"""The options of an adaptation: what is refused, and what the message names."""

import pytest

from medvl.errors import ConfigError
from medvl.language.decoder import from_scratch
from medvl.language.options import Scratch, load_adapt_options


def test_wrong_options_name_the_right_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown adaptation 'smal'.*Did you mean 'small'"):
        load_adapt_options("smal")
    with pytest.raises(ConfigError, match=r"option poolin is 'mean'.*Did you mean 'pooling'"):
        load_adapt_options("small", {"poolin": "mean"})
    with pytest.raises(ConfigError, match=r"option masked\.rate is 2: Input should be less than"):
        load_adapt_options("small", {"masked.rate": 2})
    with pytest.raises(ConfigError, match=r"option 'seed\.x': 'seed' holds a value, not options"):
        load_adapt_options("small", {"seed": 1, "seed.x": 1})
    (tmp_path / "a.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="an adaptation is a mapping, got list"):
        load_adapt_options(tmp_path / "a.yaml")
    assert load_adapt_options("llm").lora is not None
    with pytest.raises(ConfigError, match="width is 30; allowed are multiples of heads, 4"):
        from_scratch(["a"], shape=Scratch(width=30), max_tokens=16)
