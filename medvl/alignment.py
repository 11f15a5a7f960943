"""The alignment model: two encoders and the projections that take their features into one space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medvl.encoders.image import ImageTower, build_image_encoder, rebuild_image_encoder
from medvl.encoders.lora import LoraOptions, add_lora
from medvl.encoders.pooling import AttentionPool
from medvl.encoders.regions import part_cover
from medvl.encoders.text import TextTower, build_text_encoder, rebuild_text_encoder
from medvl.encoders.tower import TrainPolicy
from medvl.errors import ConfigError
from medvl.features import ImageFeatures, TextFeatures
from medvl.tokens import ReportTokeniser

__all__ = [
    "AlignmentModel",
    "ModelConfig",
    "ProjectionConfig",
    "TowerConfig",
    "TowerRecipe",
    "build_from_config",
    "build_model",
]


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectionConfig(_Values):
    """How features are projected: one matrix, or two with a layer norm and a ReLU between them.

    ``norm: batch`` centres and scales each axis of the pooled vectors by the statistics of the batch in
    training and by running ones afterwards, without learned values, as the last layer of MGCA's heads
    does. Towers from scratch start with vectors that all point the same way; without it a contrast
    spends hundreds of steps on telling normal from abnormal before it tells one finding from another.
    Regions and words are left as they are: normalising each cell makes empty ones as loud as the rest.

    ``image_pool: attention`` puts a learned query that attends to the regions in the place of the encoder's
    own pooled vector (:class:`medvl.encoders.pooling.AttentionPool`), as CoCa does.
    """

    kind: Literal["linear", "mlp"] = "linear"
    dim: int = Field(default=128, ge=1, le=65536)
    hidden: int = Field(default=512, ge=1, le=65536)
    norm: Literal["none", "batch"] = "none"
    image_pool: Literal["encoder", "attention"] = "encoder"


class TowerRecipe(_Values):
    """What a recipe says of one tower: which encoder, with which options, and how far it trains."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    train: TrainPolicy = "full"
    lora: LoraOptions | None = None
    freeze_layers: int = Field(default=0, ge=0)
    """Blocks at the input that rest, with the embeddings before them."""
    activation_checkpointing: bool = False
    """Computes each block again in the backward pass: less memory, a third more time."""
    weights: str | None = None
    """A run, a bundle or a self-distillation folder whose tower of this side is where training starts."""


class TowerConfig(_Values):
    """What a saved model says of one tower: enough to rebuild it without a download."""

    name: str
    architecture: dict[str, Any]
    lora: LoraOptions | None = None
    train: TrainPolicy = "full"


class ModelConfig(_Values):
    """The architecture of an :class:`AlignmentModel`, by catalogue names and plain values."""

    image: TowerConfig
    text: TowerConfig
    projection: ProjectionConfig = ProjectionConfig()
    local: bool = True


def _projection(width: int, config: ProjectionConfig) -> nn.Module:
    if config.kind == "linear":
        return nn.Linear(width, config.dim, bias=False)
    # Layer norm and not MGCA's batch norm: an embedding must not depend on its neighbours in the batch.
    return nn.Sequential(
        nn.Linear(width, config.hidden, bias=False),
        nn.LayerNorm(config.hidden),
        nn.ReLU(),
        nn.Linear(config.hidden, config.dim, bias=False),
    )


def _norm(config: ProjectionConfig) -> nn.Module:
    return nn.BatchNorm1d(config.dim, affine=False) if config.norm == "batch" else nn.Identity()


def _as_pooled(norm: nn.Module, parts: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Carry parts into the space of the pooled vectors; their statistics are not the pooled ones'."""
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        return parts
    return (parts - norm.running_mean) * torch.rsqrt(norm.running_var + norm.eps)


class AlignmentModel(nn.Module):
    """Images and reports in one space of ``dim`` axes; nothing is normalised here.

    With ``local`` regions have a projection of their own, and words and sentences share another. Without,
    they take the projections of the pooled vectors, so that a model that was trained on pooled
    vectors alone can still be asked where (class activation maps).

    Args:
        image_encoder: any image tower.
        text_encoder: any text tower.
        projection: kind, ``dim`` and ``hidden`` width of the projections.
        local: whether a local term trains the region and sentence projections.

    Raises:
        ConfigError: without ``local``, the regions of the encoder are not as wide as its pooled vector.
    """

    def __init__(
        self,
        image_encoder: ImageTower,
        text_encoder: TextTower,
        *,
        projection: ProjectionConfig | None = None,
        local: bool = True,
    ) -> None:
        super().__init__()
        config = projection or ProjectionConfig()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.projection = config
        self.dim = config.dim
        self.local = local
        attends = config.image_pool == "attention"
        self.image_pool = AttentionPool(image_encoder.region_width) if attends else None
        pooled_width = image_encoder.region_width if attends else image_encoder.width
        self.image_projection = _projection(pooled_width, config)
        self.text_projection = _projection(text_encoder.width, config)
        self.image_norm, self.text_norm = _norm(config), _norm(config)
        if local:
            self.region_projection = _projection(image_encoder.region_width, config)
            self.word_projection = _projection(text_encoder.word_width, config)
        elif image_encoder.region_width != pooled_width:
            raise ConfigError(
                f"the regions of encoder '{image_encoder.name}' have {image_encoder.region_width} values and "
                f"its pooled vector {image_encoder.width}; without a local term they must be equally wide.",
                hint="Set region_stride to 32, or choose an objective with a local term.",
            )

    def encode_image(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
    ) -> ImageFeatures:
        """Return pooled and region features, projected to ``dim``."""
        return self.normalise_image(self.project_image(images, image_mask))

    def project_image(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
        *,
        parts: bool = True,
        voxel_parts: UInt8[Tensor, " batch *spatial"] | None = None,
        body_parts: int = 0,
    ) -> ImageFeatures:
        """Return the features of :meth:`encode_image` before what depends on the rest of the batch.

        Without ``parts`` the first region stands for all of them: a loss of pooled vectors reads none, and
        need not keep or send them.

        Args:
            images: as in :class:`medvl.features.Batch`.
            image_mask: likewise.
            parts: whether regions are read.
            voxel_parts: number of the anatomical part of each voxel; fills ``region_parts``.
            body_parts: how many anatomical parts are counted.
        """
        features = self.image_encoder(images, image_mask)
        if parts and voxel_parts is not None:
            seen = part_cover(voxel_parts, features.region_grid, parts=body_parts)
            features = replace(features, region_parts=seen & features.region_mask[..., None])
        pooled = features.pooled
        if self.image_pool is not None:
            pooled = self.image_pool(features.regions, features.region_mask)
        pooled = self.image_projection(pooled)
        if not parts:
            features = replace(
                features,
                regions=features.regions[:, :1],
                region_mask=features.region_mask[:, :1],
                region_grid=(1,) * len(features.region_grid),
                region_weights=None,
                region_parts=None,
            )
        if self.local:
            return replace(features, pooled=pooled, regions=self.region_projection(features.regions))
        return replace(features, pooled=pooled, regions=self.image_projection(features.regions))

    def normalise_image(self, features: ImageFeatures) -> ImageFeatures:
        """Return projected features of a whole batch under the norm of the batch."""
        pooled = self.image_norm(features.pooled)
        regions = features.regions if self.local else _as_pooled(self.image_norm, features.regions)
        return replace(features, pooled=pooled, regions=regions)

    def encode_text(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> TextFeatures:
        """Return pooled, word and sentence features, projected to ``dim``."""
        return self.normalise_text(self.project_text(tokens, token_mask))

    def project_text(
        self,
        tokens: Int[Tensor, "batch tokens"],
        token_mask: Int[Tensor, "batch tokens"],
        *,
        parts: bool = True,
    ) -> TextFeatures:
        """Return the features of :meth:`encode_text` before what depends on the rest of the batch.

        Without ``parts`` the first word and the first sentence stand for all of them.
        """
        features = self.text_encoder(tokens, token_mask)
        if not parts:
            features = replace(
                features,
                words=features.words[:, :1],
                word_mask=features.word_mask[:, :1],
                sentences=features.sentences[:, :1],
                sentence_mask=features.sentence_mask[:, :1],
                word_weights=None,
            )
        projection = self.word_projection if self.local else self.text_projection
        return replace(
            features,
            pooled=self.text_projection(features.pooled),
            words=projection(features.words),
            sentences=projection(features.sentences),
        )

    def normalise_text(self, features: TextFeatures) -> TextFeatures:
        """Return projected features of a whole batch under the norm of the batch."""
        pooled = self.text_norm(features.pooled)
        if self.local:
            return replace(features, pooled=pooled)
        words = _as_pooled(self.text_norm, features.words)
        return replace(
            features, pooled=pooled, words=words, sentences=_as_pooled(self.text_norm, features.sentences)
        )

    def embed_names(
        self, tokens: Int[Tensor, "names tokens"], token_mask: Int[Tensor, "names tokens"]
    ) -> Float[Tensor, "names dim"]:
        """Return vectors of a few texts that are no batch of reports: their statistics move no norm."""
        pooled = self.text_projection(self.text_encoder(tokens, token_mask).pooled)
        return _as_pooled(self.text_norm, pooled)

    def embed_text(
        self, tokens: Int[Tensor, "batch tokens"], token_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the projected pooled vector alone, by operations of static shape."""
        return self.text_norm(self.text_projection(self.text_encoder.pool(tokens, token_mask)))

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        image_mask: Bool[Tensor, " batch *spatial"],
        tokens: Int[Tensor, "texts tokens"],
        token_mask: Int[Tensor, "texts tokens"],
    ) -> tuple[ImageFeatures, TextFeatures]:
        """Return both sides' features."""
        return self.encode_image(images, image_mask), self.encode_text(tokens, token_mask)

    @property
    def config(self) -> ModelConfig:
        """The values from which :func:`build_from_config` builds this architecture again."""
        return ModelConfig(
            image=_tower_config(self.image_encoder),
            text=_tower_config(self.text_encoder),
            projection=self.projection,
            local=self.local,
        )

    def named_towers(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Return the trainable parameters by part, each once, in a fixed order.

        Keys are ``image``, ``text`` and ``projection``; give each its own learning rate.
        """
        towers: dict[str, list[tuple[str, nn.Parameter]]] = {"image": [], "text": [], "projection": []}
        for name, parameter in self._trainable():
            part = name.partition("_encoder.")[0] if "_encoder." in name else "projection"
            towers[part].append((name, parameter))
        return towers

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)


def _tower_config(encoder: ImageTower | TextTower) -> TowerConfig:
    return TowerConfig(
        name=encoder.name,
        architecture=encoder.architecture,
        lora=None if encoder.lora is None else LoraOptions.model_validate(encoder.lora),
        train=encoder.policy,
    )


def build_model(
    *,
    image: TowerRecipe,
    text: TowerRecipe,
    tokeniser: ReportTokeniser,
    projection: ProjectionConfig | None = None,
    local: bool = True,
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> AlignmentModel:
    """Build a model for training, with pretrained weights where the encoders have them.

    Args:
        image: the image tower by name, options and training policy.
        text: the text tower likewise.
        tokeniser: from :func:`medvl.encoders.text.text_tokeniser` for the same text tower.
        projection: of all features.
        local: whether the objective trains regions and sentences (its ``needs_local``).
        weights: tensors that the tower ``image`` or ``text`` starts from; see
            :func:`medvl.training.start.start_of`.

    Raises:
        ConfigError: an unknown name, option or policy, or weights that do not fit.

    Examples:
        >>> from medvl.tokens import train_tokeniser
        >>> model = build_model(
        ...     image=TowerRecipe(name="resnet", options={"widths": [8, 16], "blocks": [1, 1]}),
        ...     text=TowerRecipe(name="bert", options={"layers": 1, "width": 32}, train="frozen"),
        ...     tokeniser=train_tokeniser(["no effusion"]),
        ... )
        >>> {part: len(parameters) > 0 for part, parameters in model.named_towers().items()}
        {'image': True, 'text': False, 'projection': True}
    """
    image_encoder = build_image_encoder(image.name, image.options)
    text_encoder = build_text_encoder(text.name, text.options, tokeniser)
    for side, encoder, tower in (("image", image_encoder, image), ("text", text_encoder, text)):
        if weights and side in weights:
            encoder.load_weights(weights[side])
        if tower.lora is not None:
            add_lora(encoder, tower.lora)
        encoder.set_policy(tower.train)
        if tower.freeze_layers:
            encoder.freeze_layers(tower.freeze_layers)
        if tower.activation_checkpointing:
            encoder.checkpoint_activations()
    return AlignmentModel(image_encoder, text_encoder, projection=projection, local=local)


def build_from_config(config: ModelConfig) -> AlignmentModel:
    """Build the architecture that ``config`` describes, with random weights and no download.

    Raises:
        ConfigError: an unknown name or value.
    """
    image_encoder = rebuild_image_encoder(config.image.name, config.image.architecture)
    text_encoder = rebuild_text_encoder(config.text.name, config.text.architecture)
    for encoder, tower in ((image_encoder, config.image), (text_encoder, config.text)):
        if tower.lora is not None:
            add_lora(encoder, tower.lora)
        encoder.set_policy(tower.train)
    return AlignmentModel(image_encoder, text_encoder, projection=config.projection, local=config.local)
