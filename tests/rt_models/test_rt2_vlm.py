"""RT-2 on transformers' models: the native forward pass, RT2's laws, what is tuned, and what is refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra vlm")

from torch import Tensor  # noqa: E402

from rt_models.control.rt2_policy import RT2Policy  # noqa: E402
from rt_models.language.action_vocabulary import AddedTokens, LeastFrequentTokens  # noqa: E402
from rt_models.language.generation import generate, predict_actions  # noqa: E402
from rt_models.language.model_source import is_on_hub, located, source_of  # noqa: E402
from rt_models.language.prompts import RT2TextConfig  # noqa: E402
from rt_models.rt2_vlm import RT2VLM, FrozenVision, FullTuning, LoRA, RT2VLMConfig  # noqa: E402
from tests.support.compiled_graphs import count_graphs  # noqa: E402
from tests.support.rt2_folders import FAMILIES, save_paligemma  # noqa: E402
from tests.support.rt2_rows import INSTRUCTIONS, make_batch, prompts_of, row_of  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in FAMILIES.items()}


def config_of(folders: dict[str, Path], family: str, **settings: Any) -> RT2VLMConfig:
    return RT2VLMConfig.paligemma(str(folders[family]), **settings)


def test_a_model_that_was_read_from_a_folder_begins_in_training(folders: dict[str, Path]) -> None:
    """transformers hands it out in evaluation mode, where activation checkpointing would be off."""
    model = config_of(folders, "paligemma", activation_checkpointing="blocks").build()
    assert all(part.training for part in model.modules())


def native_loss(model: RT2VLM, row: dict[str, Tensor]) -> Tensor:
    """Summed cross-entropy of one row's answer as transformers itself computes it."""
    image_NCHW = row["frames"][row["image_index"][0]].permute(0, 3, 1, 2).double() / 255
    size = model.picture.image_size
    pixels = torch.nn.functional.interpolate(image_NCHW, (size, size), mode="bilinear", antialias=True) * 2 - 1
    ids = torch.tensor([*model.image_ids * len(pixels), *row["tokens"][0].tolist()])[None]
    labels = torch.full_like(ids, -100)
    answer = torch.nn.functional.pad(row["answer_mask"], (ids.shape[1] - row["answer_mask"].shape[1], 0))
    labels[answer] = ids[answer]
    arguments: dict[str, Any] = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    kind = model.vlm.config.model_type
    if len(pixels) and kind == "qwen2_vl":
        arguments |= qwen_pixels(pixels, model.vlm.config.vision_config)
        arguments["mm_token_type_ids"] = (ids == model.vlm.config.image_token_id).int()
    elif len(pixels):
        arguments["pixel_values"] = pixels[None] if kind == "smolvlm" else pixels
    if kind == "paligemma":  # its processor marks the answer
        first = int(answer[0].to(torch.uint8).argmax())
        arguments["token_type_ids"] = (torch.arange(ids.shape[1]) >= first).long()[None]
    return model.vlm(**arguments).loss * answer.sum()


def qwen_pixels(pixels_NCHW: Tensor, vision: Any) -> dict[str, Tensor]:
    """As its processor lays them out: CLIP's normalisation, each picture twice in time, patches in groups to merge."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    patches, side = [], pixels_NCHW.shape[-1] // vision.patch_size
    for picture in ((pixels_NCHW + 1) / 2 - mean) / std:
        for row, column in ((r, c) for r in range(0, side, 2) for c in range(0, side, 2)):
            for y, x in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                patch = picture[:, y * vision.patch_size :, x * vision.patch_size :]
                patch = patch[:, : vision.patch_size, : vision.patch_size]
                patches.append(torch.stack([patch, patch], dim=1).flatten())
    return {"pixel_values": torch.stack(patches), "image_grid_thw": torch.tensor([[1, side, side]] * len(pixels_NCHW))}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_loss_is_that_of_transformers(family: str, folders: dict[str, Path]) -> None:
    config = config_of(folders, family)
    model, batch = config.build().double().eval(), make_batch(config.build_text())
    together = model.row_losses(batch)
    for row in range(4):
        alone = row_of(batch, row)
        torch.testing.assert_close(model.row_losses(alone).sum_B[0], together.sum_B[row], rtol=1e-8, atol=1e-8)
        expected = native_loss(model, alone)  # transformers takes its cross-entropy in float32
        torch.testing.assert_close(together.sum_B[row], expected.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.loss(batch), (together.sum_B / together.tokens_B).mean())


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_positions_of_three_axes_are_those_of_transformers(pictures: int, folders: dict[str, Path]) -> None:
    model = config_of(folders, "qwen2_vl").build()
    ids = torch.tensor([[*model.image_ids * pictures, 7, 8, 9]])
    is_patch, grid = (ids == model.vlm.config.image_token_id).int(), torch.tensor([[1, 4, 4]] * pictures)
    expected, _ = model.vlm.model.get_rope_index(ids, is_patch, image_grid_thw=grid)
    place_BS = torch.arange(ids.shape[1])[None]
    assert torch.equal(model.family.positions(model.vlm.config, place_BS, torch.tensor([pictures])), expected)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_are_those_trained_on(family: str, folders: dict[str, Path]) -> None:
    config = config_of(folders, family)
    model, batch = config.build().double().eval(), make_batch(config.build_text())
    length_B = batch["answer_mask"].to(torch.uint8).argmax(dim=1)
    prompt_BL = torch.arange(batch["tokens"].shape[1]) < length_B[:, None]
    count_B = (batch["token_mask"] & ~prompt_BL).sum(dim=1)
    logits_BV, cache = model.start({**batch, "token_mask": prompt_BL}, max_new_tokens=12)
    sum_B = torch.zeros(4, dtype=torch.float64)
    for number in range(int(count_B.max())):
        place_B1 = (length_B + number).clamp(max=batch["tokens"].shape[1] - 1)[:, None]
        token_B, target_B = batch["tokens"].gather(1, place_B1)[:, 0], batch["answer_mask"].gather(1, place_B1)[:, 0]
        ce_B = torch.nn.functional.cross_entropy(logits_BV, token_B, reduction="none")
        sum_B += torch.where(target_B & (number < count_B), ce_B, 0)
        # Rows wait now and then: what is said beside them must leave no trace.
        model.advance(torch.full_like(token_B, 7), cache, torch.zeros(4, dtype=torch.bool))
        logits_BV = model.advance(token_B, cache, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(sum_B, model.row_losses(batch).sum_B)


@pytest.mark.parametrize("family", FAMILIES)
def test_actions_are_valid_and_rows_independent(family: str, folders: dict[str, Path]) -> None:
    config = config_of(folders, family)
    model, text = config.build().double().eval(), config.build_text()
    batch = prompts_of(text, [*INSTRUCTIONS, "push a red cup in a blue drawer"])
    answer = predict_actions(model, batch, text)
    assert int(answer.bins_BA.max()) < 256 and int(answer.bins_BA[:, 0].max()) < 3
    said = generate(model, batch, eos_id=text.tokenizer.eos_id, max_new_tokens=5)
    for row in range(4):
        length, place = int(batch["token_mask"][row].sum()), batch["image_index"][row]
        alone = {"frames": batch["frames"], "image_index": place[place >= 0][None]}
        alone |= {key: batch[key][row : row + 1, :length] for key in ("tokens", "token_mask")}
        assert torch.equal(predict_actions(model, alone, text).bins_BA[0], answer.bins_BA[row])
        assert generate(model, alone, eos_id=text.tokenizer.eos_id, max_new_tokens=5)[0] == said[row]
    frame = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8)
    assert RT2Policy(model, text).act(frame, "push a red cup").values.shape == (11,)


def trained(model: RT2VLM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_tuning_moves_what_it_says(family: str, folders: dict[str, Path]) -> None:
    config = config_of(folders, family)
    batch = make_batch(config.build_text())
    for tuning in (FullTuning(), FrozenVision(), LoRA(rank=2)):
        model = replace(config, tuning=tuning).build().train()
        before = copy.deepcopy({name: p.detach() for name, p in model.named_parameters()})
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        model.loss(batch).backward()
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved <= trained(model)
        vision = {name for name in moved if ".vision" in name or ".visual" in name}
        if isinstance(tuning, FullTuning):
            assert vision and trained(model) == set(before)
        elif isinstance(tuning, FrozenVision):
            assert moved and not vision
        else:
            assert trained(model) == {name for name in before if "lora_" in name}
            assert moved and all("lora_B" in name for name in moved)  # A is multiplied by B's zeros at first


def test_lora_can_train_the_embeddings(folders: dict[str, Path]) -> None:
    model = config_of(folders, "paligemma", tuning=LoRA(rank=2, embeddings="trained")).build()
    assert any("embed_tokens" in name for name in trained(model))


def test_checkpointed_blocks_give_the_same_gradients(folders: dict[str, Path]) -> None:
    config = config_of(folders, "paligemma")
    batch = make_batch(config.build_text())
    gradients = []
    for checkpointing in ("off", "selective", "blocks"):
        model = replace(config, activation_checkpointing=checkpointing).build().train()  # type: ignore[arg-type]
        model.loss(batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, msg=name)
        torch.testing.assert_close(gradients[2][name], plain, msg=name)


@pytest.mark.parametrize(
    ("family", "checkpointing", "kinds"),
    [
        ("paligemma", "blocks", 2),
        pytest.param("smolvlm", "off", 2, marks=pytest.mark.slow),
        pytest.param("qwen2_vl", "off", 1, marks=pytest.mark.slow),  # its encoder is left as it is
    ],
)
def test_compiled_layers_give_the_same_gradients_by_one_graph_a_kind(
    family: str, checkpointing: Any, kinds: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = count_graphs(monkeypatch, "eager")
    config = config_of(folders, family, activation_checkpointing=checkpointing)
    plain, compiled = (replace(config, compile=how).build().train() for how in ("off", "aot_eager"))
    text = config.build_text()
    batch = make_batch(text)
    for rows in (slice(0, 4), slice(1, 3)):
        some = {key: value if key == "frames" else value[rows] for key, value in batch.items()}
        ours, theirs = plain.loss(some), compiled.loss(some)
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
        ours.backward(), theirs.backward()
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5, msg=name)
    assert len(graphs) == kinds
    actions = [predict_actions(m.eval(), prompts_of(text, INSTRUCTIONS), text).bins_BA for m in (plain, compiled)]
    assert actions[0].tolist() == actions[1].tolist()
    assert len(graphs) <= 2 * kinds  # at evaluation pictures and prompts are compiled; the tokens that follow are not


def test_without_pictures_every_parameter_still_takes_part(folders: dict[str, Path]) -> None:
    config = config_of(folders, "paligemma")
    model, batch = config.build(), make_batch(config.build_text())
    model.loss(row_of(batch, 3) | {"frames": batch["frames"][:0]}).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("vocabulary", [AddedTokens(), LeastFrequentTokens()])
def test_other_action_vocabularies(vocabulary: Any, folders: dict[str, Path]) -> None:
    config = config_of(folders, "paligemma")
    config = replace(config, text=replace(config.text, vocabulary=vocabulary))
    model, text = config.build(), config.build_text()
    assert model.vocab_size >= text.vocab_size
    model.loss(make_batch(text)).backward()
    assert predict_actions(model.eval(), prompts_of(text, INSTRUCTIONS), text).bins_BA.shape == (3, 11)


def test_random_weights_take_only_the_sizes(folders: dict[str, Path]) -> None:
    config = config_of(folders, "paligemma")
    torch.manual_seed(1)  # the saved ones were drawn under 0
    saved, drawn = config.build(), replace(config, weights="random").build()
    assert {n: p.shape for n, p in saved.named_parameters()} == {n: p.shape for n, p in drawn.named_parameters()}
    assert not torch.equal(next(saved.parameters()), next(drawn.parameters()))
    assert next(replace(config, dtype="bfloat16").build().parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_alone_read_no_weights(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = config_of(folders, family).build()
    for file in folders[family].iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with torch.device("meta"):
        shapes = replace(config_of(folders, family), path=str(tmp_path)).build()
    assert all(p.is_meta for p in shapes.parameters())
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}


# --- What is refused ---


@pytest.mark.parametrize("path", ["/nowhere/paligemma", "./nowhere", "nowhere", "a/b/c", "models/paligemma"])
def test_a_missing_folder_is_one_sentence_and_is_not_looked_for_on_the_hub(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name, **_: asked.append(name))
    with pytest.raises(OSError, match=f"model folder {path}: it is not there") as error:
        RT2VLMConfig(path=path).build()
    assert "\n" not in str(error.value) and "hub:OWNER/MODEL" in str(error.value) and not asked


def test_a_name_on_the_hub_is_said_to_be_one(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source_of("hub:google/paligemma-3b-pt-224") == "google/paligemma-3b-pt-224"
    for name in ("hub:paligemma", "hub:../x", "hub:", "hub:a/b/c", "hub:https://host/a"):
        with pytest.raises(OSError, match="is named hub:OWNER/MODEL"):
            source_of(name)
    folder = folders["paligemma"]
    monkeypatch.chdir(folder.parent)
    absolute = located(folder.name)
    monkeypatch.chdir(tmp_path)  # as a worker's folder
    with pytest.raises(OSError, match="it is not there"):
        source_of(folder.name)
    assert source_of(absolute) == str(folder) and not is_on_hub(absolute)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"model {tmp_path}: ") as error:
        RT2VLMConfig(path=str(tmp_path)).build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "spoilt", "says"),
    [
        ("config.json", lambda _: b"[]", "Unrecognized model"),
        ("config.json", lambda _: b"{}", "Unrecognized model"),
        ("config.json", lambda whole: whole.replace(b'"hidden_size": 32', b'"hidden_size": 30'), "must be divisible"),
        ("tokenizer.json", lambda whole: whole[:100], "model "),
        ("model.safetensors", lambda whole: whole[:5000], "is cut or damaged"),
        ("model.safetensors", lambda whole: whole[:-1], "is cut or damaged"),
        ("model.safetensors", None, "no weights are in it; --model.weights random takes only its sizes"),
    ],
)
def test_a_damaged_folder_is_one_sentence_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, file: str, spoilt: Callable[[bytes], bytes] | None, says: str
) -> None:
    folder = shutil.copytree(folders["paligemma"], tmp_path / "model")
    RT2VLMConfig.paligemma(str(folder)).require_loadable()
    if spoilt is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(spoilt((folder / file).read_bytes()))
    with pytest.raises(OSError, match=says) as error:
        RT2VLMConfig.paligemma(str(folder)).require_loadable()
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_weights_of_other_sizes_are_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["paligemma"], tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(OSError, match=f"model {folder}: ") as error:
        RT2VLMConfig.paligemma(str(folder)).build()
    assert "\n" not in str(error.value)


def test_an_unknown_family_is_one_sentence(tmp_path: Path) -> None:
    transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a bert: known here are paligemma"):
        RT2VLMConfig(path=str(tmp_path)).build()


def test_a_vocabulary_without_room_is_one_sentence(tmp_path: Path) -> None:
    save_paligemma(tmp_path)
    config = RT2VLMConfig(path=str(tmp_path), text=RT2TextConfig())
    with pytest.raises(ValueError, match="no token of its own for '0'"):
        config.build()


def test_a_picture_of_another_mode_is_one_sentence(folders: dict[str, Path]) -> None:
    config = config_of(folders, "paligemma")
    grey = make_batch(config.build_text()) | {"frames": torch.zeros(3, 20, 24, 1, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="RGB in 0"):
        config.build().loss(grey)
