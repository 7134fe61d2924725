"""What a recommender is made of; saved beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, get_args

from recsys.errors import ConfigError

Shape = Literal["compact", "token", "flat"]
Transition = Literal["rnn", "gru", "none"]
Fusion = Literal["add", "concat"]
BackboneKind = Literal["own", "huggingface", "imported"]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "shape": get_args(Shape),
    "transition": get_args(Transition),
    "fusion": get_args(Fusion),
    "backbone": get_args(BackboneKind),
}


@dataclass(frozen=True, slots=True)
class RecommenderConfig:
    """Sizes and switches of a recommender.

    Attributes:
        shape: `compact` (one position per item, the head writes), `token` (L tokens per item, the backbone writes
            too) or `flat` (the compact trunk with a dot product over all items).
        codebook_sizes: T_1..T_L.
        num_items: I.
        text_dim: width of the text embeddings, 0 for none.
        collaborative_dim: width of the collaborative vectors, 0 for none.
        use_item_id: whether an item-ID embedding stands at the input.
        d_model: hidden size H.
        layers: decoder blocks.
        heads: attention heads.
        ffn_multiple: SwiGLU width over d_model.
        max_history: newest items of a history that the model reads.
        dropout: on embeddings and residual branches.
        drop_id: share of positions whose ID and collaborative parts become 'unknown' in training.
        transition: of the draft head's state.
        fusion: of hidden state and head state before the output layer.
        placeholders: whether h_1..h_L exist; without them every level reads h_0 (as Medusa's heads).
        item_rows: compact shape: every item has an output row of its own in the head, (I, d_model) weights more.
        whole_codebook: train and decode with the softmax over the whole codebook (as the released NEZHA).
        backbone: `own` (recsys.models.backbone), `huggingface` (recsys.backends.huggingface), or `imported`: a language
            model that was trained elsewhere (recsys.models.prompted).
        backbone_config: keys of the Hugging Face decoder's configuration, over what follows from the sizes above.
    """

    codebook_sizes: tuple[int, ...]
    num_items: int
    text_dim: int
    collaborative_dim: int
    shape: Shape = "compact"
    use_item_id: bool = True
    d_model: int = 128
    layers: int = 3
    heads: int = 4
    ffn_multiple: float = 2.0
    max_history: int = 50
    dropout: float = 0.3
    drop_id: float = 0.1
    transition: Transition = "gru"
    fusion: Fusion = "add"
    placeholders: bool = True
    item_rows: bool = False
    whole_codebook: bool = False
    backbone: BackboneKind = "own"
    backbone_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError("unknown choice", field=name, value=getattr(self, name), remedy=f"one of {allowed}")
        if self.item_rows and (self.shape != "compact" or self.whole_codebook):
            raise ConfigError(
                "rows of items belong to the compact shape and its softmax over the children of a prefix",
                field="item_rows",
                value=self.item_rows,
                remedy="set item_rows: false, or shape: compact and whole_codebook: false",
            )
        if self.backbone == "own" and self.backbone_config:
            raise ConfigError(
                "the own backbone has no settings beside the sizes",
                field="backbone_config",
                value=self.backbone_config,
                remedy="leave it empty, or choose the backbone `huggingface`",
            )
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ConfigError("d_model / heads must be an even integer", field="d_model", value=self.d_model)
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ConfigError("codebook sizes must be positive", field="codebook_sizes", value=self.codebook_sizes)
        for name in ("num_items", "layers", "heads", "max_history"):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name, value=getattr(self, name))

    @property
    def levels(self) -> int:
        """L."""
        return len(self.codebook_sizes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> RecommenderConfig:
        """Build from `to_dict`'s form.

        Raises:
            ConfigError: an unknown field, or a value out of range.
        """
        known = {one.name for one in fields(cls)}
        for name, found in value.items():
            if name not in known:
                raise ConfigError("unknown field of the model's configuration", field=name, value=found)
        return cls(**{**value, "codebook_sizes": tuple(value["codebook_sizes"])})
