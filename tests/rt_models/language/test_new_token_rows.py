"""LoRA beside tokens that are new to the model: their rows are trained, and nothing else of the embeddings."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra vlm")

from rt_models.language.action_vocabulary import AddedTokens, LeastFrequentTokens, ReservedTokens  # noqa: E402
from rt_models.language.generation import predict_actions  # noqa: E402
from rt_models.rt2_vlm import RT2VLM, FullTuning, LoRA, RT2VLMConfig  # noqa: E402
from tests.support.rt2_folders import FAMILIES, save_paligemma  # noqa: E402
from tests.support.rt2_rows import INSTRUCTIONS, make_batch, prompts_of  # noqa: E402


def save_untied(folder: Path) -> Path:
    config = transformers.PaliGemmaConfig.from_pretrained(save_paligemma(folder))
    config.tie_word_embeddings = False
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {**FAMILIES, "paligemma_untied": save_untied}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in FOLDERS.items()}


def config_of(folder: Path, vocabulary: Any, tuning: Any = None) -> RT2VLMConfig:
    config = RT2VLMConfig.paligemma(str(folder), tuning=tuning or LoRA(rank=2))
    return replace(config, text=replace(config.text, vocabulary=vocabulary))


def step_by_step(model: RT2VLM, steps: int) -> list[float]:
    """Loss of the robots' rows at each step of a training on one batch."""
    batch, losses = make_batch(model.config.build_text()), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
        assert model.row_losses_B is not None
        losses.append(float(model.row_losses_B[:2].mean()))
    return losses


@pytest.mark.parametrize("vocabulary", [AddedTokens(), LeastFrequentTokens()], ids=["added", "overwritten"])
@pytest.mark.parametrize("family", FOLDERS)
def test_lora_learns_to_say_new_tokens_and_leaves_the_others(family: str, vocabulary: Any, folders: Any) -> None:
    model = config_of(folders[family], vocabulary).build().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name in before if "lora_" in name or name.endswith("new_rows")}
    is_tied = model.vlm.get_input_embeddings().weight is model.vlm.get_output_embeddings().weight
    assert is_tied == (family == "paligemma")
    assert sum(name.endswith("new_rows") for name in before) == (1 if is_tied else 2)
    losses = step_by_step(model, 40)
    assert losses[-1] < 0.8 * math.log(256) < losses[0]  # frozen rows of added tokens end at ln 256, 5.5
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained and any(name.endswith("new_rows") for name in moved)


@pytest.mark.parametrize("family", FOLDERS)
def test_a_difference_counts_as_the_row_it_makes(family: str, folders: Any) -> None:
    """Inputs, logits, prompts and cached steps see the frozen rows plus the differences."""
    config = config_of(folders[family], LeastFrequentTokens())
    text, model = config.build_text(), config.build().double().eval()
    merged = replace(config, tuning=LoRA(rank=2, embeddings="frozen")).build().double().eval()
    embedding, head = model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings()
    with torch.no_grad():
        for number, end in enumerate((embedding, head)):
            end.new_rows.copy_(torch.randn(256, 32, generator=torch.Generator().manual_seed(number)))
        theirs = [merged.vlm.get_input_embeddings(), merged.vlm.get_output_embeddings()]
        for mine, other in zip(
            (embedding, head), theirs[: 1 if theirs[0].weight is theirs[1].weight else 2], strict=False
        ):
            other.weight[list(text.action_ids)] += mine.new_rows
        batch = make_batch(text)
        torch.testing.assert_close(model.row_losses(batch).sum_B, merged.row_losses(batch).sum_B)
    prompts = prompts_of(text, INSTRUCTIONS)
    said, expected = (predict_actions(each, prompts, text) for each in (model, merged))
    assert torch.equal(said.bins_BA, expected.bins_BA)
    torch.testing.assert_close(said.valid_mass_BK, expected.valid_mass_BK)


def test_copies_and_saved_states_keep_the_differences(folders: Any) -> None:
    config = config_of(folders["paligemma"], AddedTokens())
    model, batch = config.build(), make_batch(config.build_text())
    step_by_step(model, 3)
    loaded = config.build()
    loaded.load_state_dict(model.state_dict())
    expected = model.eval().loss(batch)
    for other in (copy.deepcopy(model), loaded.eval()):
        torch.testing.assert_close(other.loss(batch), expected)
    step_by_step(loaded, 1)
    torch.testing.assert_close(model.loss(batch), expected)  # a copy's rows are its own


@pytest.mark.parametrize(
    ("vocabulary", "tuning", "rows"),
    [
        (ReservedTokens(), LoRA(rank=2), 0),
        (AddedTokens(), FullTuning(), 0),
        (AddedTokens(), LoRA(rank=2, embeddings="frozen"), 0),
        (AddedTokens(), LoRA(rank=2, embeddings="trained"), 0),
        (AddedTokens(), LoRA(rank=2), 256),
    ],
)
def test_only_lora_beside_new_tokens_needs_differences(vocabulary: Any, tuning: Any, rows: int, folders: Any) -> None:
    config = config_of(folders["paligemma"], vocabulary, tuning)
    with torch.device("meta"):  # shapes alone
        model = config.build()
    sizes = [len(p) for name, p in model.named_parameters() if name.endswith("new_rows")]
    assert sum(sizes) == rows
    assert len(model.new_token_parameters()) == (2 if isinstance(vocabulary, AddedTokens) else 0)


def test_without_new_tokens_a_run_says_that_embeddings_are_frozen(folders: Any) -> None:
    """As runs older than the choice said: they can be resumed."""
    config = config_of(folders["paligemma"], ReservedTokens())
    assert config.resolved().tuning == LoRA(rank=2, embeddings="frozen")
    added = config_of(folders["paligemma"], AddedTokens())
    assert added.resolved() == added
