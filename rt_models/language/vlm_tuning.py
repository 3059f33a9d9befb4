"""What of a pretrained vision-language model is trained: all, all but the vision encoder, or low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rt_models.config_checks import require_choices, require_share, require_sizes
from rt_models.language.new_token_rows import train_rows
from rt_models.language.vlm_families import Family, VlmModel


@dataclass(frozen=True, kw_only=True)
class FullTuning:
    """Every parameter."""

    def apply(self, vlm: VlmModel, family: Family, new_ids: Sequence[int]) -> None:
        vlm.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class FrozenVision:
    """Everything but the vision encoder."""

    def apply(self, vlm: VlmModel, family: Family, new_ids: Sequence[int]) -> None:
        vlm.requires_grad_(True)
        family.vision(vlm).requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank updates of the language model's linear layers; the rest is frozen (Hu et al., 2021; peft)."""

    rank: int = 32
    """Rank of each update."""
    alpha: int = 32
    """An update is scaled by alpha / rank."""
    dropout: float = 0.0
    """On the input of each update."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an update."""
    embeddings: Literal["new", "frozen", "trained"] = "new"
    """Of the tokens: trained are those of action tokens that are new to the model (AddedTokens, LeastFrequentTokens),
    none, or all."""

    def __post_init__(self) -> None:
        require_sizes(self, "rank", "alpha", part="tuning.")
        require_share(self, "dropout", "tuning.")
        require_choices(self, "tuning.")

    def apply(self, vlm: VlmModel, family: Family, new_ids: Sequence[int]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        pattern = rf".*{family.language}.*\.({'|'.join(self.targets)})"
        lora = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=pattern)
        inject_adapter_in_model(lora, vlm)
        if self.embeddings == "trained":
            vlm.get_input_embeddings().requires_grad_(True)
            vlm.get_output_embeddings().requires_grad_(True)
        elif self.embeddings == "new" and new_ids:
            train_rows(vlm, new_ids)
