"""RT-2 on a pretrained vision-language model of transformers: RT2's methods and batch, a folder's or the hub's weights.

PaliGemma first, being the open PaLI; SmolVLM and Qwen2-VL beside it. What differs between them is in the small classes
of language/vlm_families.py. Needs the extra `vlm`.

The rows, the loss on answers and the decoding are those of rt2.py: pictures before the text, distinct frames encoded
once, logits only where an answer stands. Under DeepSpeed ZeRO-3, transformers creates the parameters sharded while it
reads the folder, so that no rank holds the whole model.

Axes: B rows, I image places, N pictures, P patches of a picture, L tokens, S positions of a row, R answered places,
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rt_models.action_space import ActionSpec
from rt_models.blocks.activation_checkpointing import ActivationCheckpointing, selective_contexts
from rt_models.blocks.compiled import Compile, compile_blocks, require_compilable
from rt_models.blocks.initial_values import do_weights_follow
from rt_models.camera_roles import MAIN_CAMERA, require_cameras
from rt_models.config_checks import require_choices, require_sizes
from rt_models.input_checks import require_rows
from rt_models.language.action_vocabulary import AddedTokens, ReservedTokens, TransformersTokenizer
from rt_models.language.answer_loss import AnswerModel, RowLosses, Targets, gathered, packing_order
from rt_models.language.model_source import REMEDY, is_on_hub, source_of
from rt_models.language.prompts import RT2Text, RT2TextConfig
from rt_models.language.vlm_families import FAMILIES, Family, VlmModel
from rt_models.language.vlm_tuning import FrozenVision, FullTuning, LoRA
from rt_models.robot_inputs import StateInput
from rt_models.vision.rt2_image_inputs import PictureConfig, normalised, pictures

LANGUAGE_LAYER = {0: (0, 1), "attention_mask": (0, 2, 3), "position_ids": (0, 1), "position_embeddings": (0, 1)}
"""Where rows and positions are in the inputs of a layer: `compile_blocks`."""


@dataclass(frozen=True, kw_only=True)
class RT2VLMConfig:
    """RT-2 on a pretrained model."""

    path: str
    """Folder in transformers' form, or hub:OWNER/MODEL (hf://OWNER/MODEL); nothing else is looked for on the hub."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """"random": only the sizes are taken from `path`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    tuning: FullTuning | FrozenVision | LoRA = field(default_factory=FullTuning)
    text: RT2TextConfig = field(default_factory=lambda: RT2TextConfig(vocabulary=ReservedTokens()))
    max_tokens: int = 128
    """Longest prompt with its answer of eight fields; patches do not count. Longer answers and a state have room
    beside it."""
    robot_crop: Literal["pad", "none"] = "none"
    """Random crop of robot frames in training: RT-1's pad-and-crop, or none."""
    crop_seed: int = 0
    """Seed of the random crops."""
    activation_checkpointing: ActivationCheckpointing = "off"
    """What a block keeps for the backward pass: everything; "selective": what its convolutions, matrix products and
    attention return, so that only cheap operations run again; "blocks": its inputs, so that all of it runs again."""
    compile: Compile = "off"
    """torch.compile with this backend, layer by layer: those of the language model once, those of the vision encoder
    once (not Qwen2-VL's). The steps of decoding run as they are. Not with zero.stage 3, nor with selective
    checkpointing."""
    cameras: tuple[str, ...] = (MAIN_CAMERA,)
    """Cameras that it reads, by role, in the order of their pictures: image, wrist, left, right and so on."""
    state: StateInput | None = None
    """The robot's state as text before the prompt; None: it reads none."""

    def __post_init__(self) -> None:
        require_sizes(self, "max_tokens")
        require_choices(self)
        require_compilable(self.compile, self.activation_checkpointing)
        require_cameras(self.cameras)

    @staticmethod
    def paligemma(path: str, **settings: Any) -> RT2VLMConfig:
        """PaliGemma's own form: a line break ends a prompt, location tokens are the action tokens."""
        text = RT2TextConfig(vocabulary=ReservedTokens())
        names = ("robot_prompt", "question_prompt", "caption_prompt")
        return RT2VLMConfig(
            path=path, text=replace(text, **{name: getattr(text, name) + "\n" for name in names}), **settings
        )

    def action_spec(self) -> ActionSpec:
        return self.text.spec()

    def build_tokenizer(self) -> TransformersTokenizer:
        """The tokenizer beside the weights."""
        return TransformersTokenizer(self._load("AutoTokenizer"))

    def build_text(self) -> RT2Text:
        """What turns texts and actions into this model's tokens and back."""
        tokenizer = self.build_tokenizer()
        return self.text.build(tokenizer, max_tokens=self.max_tokens, cameras=self.cameras, state=self.state)

    def longest_row(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return self.text.longest_row(self.max_tokens, self.state)

    def build(self, device: torch.device | None = None) -> RT2VLM:
        """The model; pretrained weights are read onto `device`. Raises OSError if `path` is missing, ValueError for a
        kind of model that is not known here."""
        return RT2VLM(self, device)

    def resolved(self) -> RT2VLMConfig:
        """With what is trained named: without new tokens, LoRA's "new" rows are none."""
        is_lora = isinstance(self.tuning, LoRA) and self.tuning.embeddings == "new"
        if not is_lora or self.text.vocabulary.is_new:
            return self
        return replace(self, tuning=replace(self.tuning, embeddings="frozen"))

    def require_loadable(self) -> None:
        """Raise OSError or ValueError where `build` would, as far as that is known without reading all weights."""
        from safetensors import SafetensorError, safe_open

        with torch.device("meta"):
            self.build()
        if self.weights == "random" or is_on_hub(self.path):
            return
        folder = Path(source_of(self.path))
        files = sorted(folder.glob("*.safetensors"))
        if not files and not any(folder.glob("*.bin")):
            raise OSError(f"model {self.path}: no weights are in it; --model.weights random takes only its sizes")
        for file in files:
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                raise OSError(f"{file} is cut or damaged ({error}): fetch it again") from None

    def load(self, device: torch.device | None) -> tuple[VlmModel, Family, list[int], tuple[int, ...]]:
        """(the model of transformers, its family, the tokens of one picture, action tokens that are new to it)."""
        import transformers
        from transformers.initialization import no_init_weights
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

        config = self._load("AutoConfig")
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise ValueError(f"model {self.path} is a {config.model_type}: known here are {', '.join(FAMILIES)}")
        dtype = getattr(torch, self.dtype)
        counted_only = torch.get_default_device().type == "meta"  # shapes are wanted, no file need be read for them
        sharded = is_deepspeed_zero3_enabled()  # it creates pieces of parameters, on a device of its own choice
        if self.weights == "pretrained" and not counted_only and (sharded or not do_weights_follow()):
            place = {} if sharded or device is None or device.type == "cpu" else {"device_map": device}
            vlm = self._load("AutoModelForImageTextToText", dtype=dtype, **place)
        else:
            # Random values cannot be drawn into sharded parameters: the model is made whole and sharded afterwards.
            unset_hf_deepspeed_config()
            with self._named(), no_init_weights() if do_weights_follow() else nullcontext():
                vlm = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
            vlm.tie_weights()
        text, vocabulary = self.build_text(), self.text.vocabulary
        if isinstance(vocabulary, AddedTokens) and text.vocab_size > vlm.get_input_embeddings().num_embeddings:
            if device is not None and not sharded:  # what is drawn is drawn on the CPU, as for every device
                for end in (vlm.get_input_embeddings(), vlm.get_output_embeddings()):
                    end.to("cpu")
            # The new rows are nearly the mean of the others, unless only shapes are wanted.
            vlm.resize_token_embeddings(text.vocab_size, mean_resizing=not (counted_only or do_weights_follow()))
            vlm = vlm if device is None or sharded else vlm.to(device)
        new_ids = text.action_ids if vocabulary.is_new else ()
        return vlm, family, family.image_ids(config, self._load("AutoTokenizer")), new_ids

    def _load(self, kind: str, **settings: Any) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise OSError("RT-2 on a pretrained model needs transformers: pip install 'rt-pipelines[vlm]'") from error
        source = source_of(self.path)
        with self._named():
            return getattr(transformers, kind).from_pretrained(source, trust_remote_code=False, **settings)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Around transformers, which raises whatever it stumbles over where a folder is not as it was saved."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"model {self.path}: {reason} ({REMEDY})") from error


@dataclass(kw_only=True)
class VLMCache:
    """transformers' cache, and which of its positions each row sees."""

    past: Any
    seen_BS: Tensor
    length_B: Tensor
    """int64: real positions of each row."""
    pictures_B: Tensor
    """int64: pictures that each row begins with."""


class RT2VLM(AnswerModel):
    """`RT2VLMConfig.build()` makes one. `spec` is its action space."""

    config: RT2VLMConfig
    image_ids_K: Tensor
    """int64: the K tokens of one picture in a row."""
    patch_K: Tensor
    """int64: which of the picture's patches stands at each of them; -1: a mark."""

    def __init__(self, config: RT2VLMConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config, self.spec = config, config.action_spec()
        self.vlm, self.family, self.image_ids, new_ids = config.load(device)
        config.tuning.apply(self.vlm, self.family, new_ids)
        if config.activation_checkpointing != "off":
            selective = {"context_fn": selective_contexts} if config.activation_checkpointing == "selective" else {}
            self.vlm.gradient_checkpointing_enable({"use_reentrant": False, **selective})
            self.vlm.enable_input_require_grads()
        if config.compile != "off":
            compile_blocks(self.family.language_layers(self.vlm), config.compile, LANGUAGE_LAYER)
            compile_blocks(self.family.vision_layers(self.vlm), config.compile, {0: (0,)})
        self.train()  # transformers hands out what it reads in evaluation mode, where it checkpoints nothing
        ids_K = torch.tensor(self.image_ids)
        self.register_buffer("image_ids_K", ids_K, persistent=False)
        is_patch_K = ids_K == self.vlm.config.image_token_id
        self.register_buffer("patch_K", (is_patch_K.cumsum(0) - 1).where(is_patch_K, -1), persistent=False)
        size = self.family.image_size(self.vlm.config)
        self.picture = PictureConfig(image_size=size, robot_crop=config.robot_crop, crop_seed=config.crop_seed)

    @property
    def vocab_size(self) -> int:
        return self.vlm.get_input_embeddings().num_embeddings

    def new_token_parameters(self) -> list[nn.Parameter]:
        """Where the rows of added tokens stand, which nobody has trained yet; none where nothing was added."""
        if not isinstance(self.config.text.vocabulary, AddedTokens):
            return []
        ends = (self.vlm.get_input_embeddings(), self.vlm.get_output_embeddings())
        return [getattr(end, "new_rows", end.weight) for end in ends]

    def language_layers(self) -> list[nn.Module]:
        """The linear layers of the language model's blocks, adapters among them."""
        named = self.vlm.named_modules()
        return [part for name, part in named if f".{self.family.language}." in name and isinstance(part, nn.Linear)]

    def row_losses(self, batch: Mapping[str, Tensor]) -> RowLosses:
        """The losses of answers, row by row; `loss(batch)` is their mean."""
        row, targets = self._batch_row(batch, augment=self.training), Targets.of(batch)
        output = self._outputs(row, row.first_token_B + targets.prompt_B, use_cache=False)  # it would copy keys, values
        hidden_BSD = output.last_hidden_state
        rows_BR = (row.first_token_B[:, None] + targets.place_BR - 1).clamp(min=0)
        return targets.losses(self._logits(targets.chosen(gathered(hidden_BSD, rows_BR))), batch["tokens"])

    def start(self, batch: Mapping[str, Tensor], *, max_new_tokens: int) -> tuple[Tensor, VLMCache]:
        """(float (B, V) logits of the token after each row's prompt, a cache). The cache grows as it needs to."""
        from transformers import DynamicCache

        row = self._batch_row(batch, augment=False)
        past = DynamicCache(config=self.vlm.config)
        output = self._outputs(row, row.length_B, past_key_values=past, use_cache=True)
        last_BD = gathered(output.last_hidden_state, (row.length_B - 1)[:, None])[:, 0]
        cache = VLMCache(past=past, seen_BS=row.real_BS, length_B=row.length_B, pictures_B=row.pictures_B)
        return self._logits(last_BD), cache

    def advance(self, tokens_B: Tensor, cache: VLMCache, active_B: Tensor) -> Tensor:
        """float (B, V) logits once `tokens_B` stand at the rows' ends; rows that are not active stay as they are."""
        # Everyone's token takes a place in the cache; the token of a row that is not active is seen by nothing later.
        now_BS = torch.cat([cache.seen_BS, torch.ones_like(active_B)[:, None]], dim=1)
        output = self.vlm.model(
            inputs_embeds=self.vlm.get_input_embeddings()(tokens_B)[:, None],
            attention_mask=now_BS[:, None, None],
            position_ids=self.family.positions(self.vlm.config, cache.length_B[:, None], cache.pictures_B),
            past_key_values=cache.past,
            use_cache=True,
        )
        cache.seen_BS = torch.cat([cache.seen_BS, active_B[:, None]], dim=1)
        cache.length_B = cache.length_B + active_B
        return self._logits(output.last_hidden_state[:, 0])

    # --- inner ---

    def _batch_row(self, batch: Mapping[str, Tensor], *, augment: bool) -> _Row:
        cameras, longest = self.config.cameras, self.config.longest_row()
        require_rows(batch, max_tokens=longest, vocab_size=self.vocab_size, cameras=cameras)
        image_NCHW, place_BI = pictures(batch, self.picture, augment=augment, dtype=torch.float32, cameras=cameras)
        patches_NPD, real_BI, tokens_BL = self._patches(image_NCHW), place_BI >= 0, batch["tokens"]
        ids_BS = torch.cat([self.image_ids_K.repeat(*place_BI.shape), tokens_BL], dim=1)
        real_BS = torch.cat([real_BI.repeat_interleave(len(self.image_ids), dim=1), batch["token_mask"]], dim=1)
        first_BI1 = (place_BI * patches_NPD.shape[1])[..., None]
        patch_BS = torch.where(real_BI[..., None] & (self.patch_K >= 0), first_BI1 + self.patch_K, -1).flatten(1)
        patch_BS = torch.cat([patch_BS, torch.full_like(tokens_BL, -1)], dim=1)
        order_BS = packing_order(real_BS, cut="num_images" not in batch)  # else the batch has one of few lengths
        return _Row(
            ids_BS=ids_BS.gather(1, order_BS),
            patch_BS=patch_BS.gather(1, order_BS),
            real_BS=real_BS.gather(1, order_BS),
            pictures_B=real_BI.sum(dim=1),
            first_token_B=real_BI.sum(dim=1) * len(self.image_ids),
            length_B=real_BS.sum(dim=1),
            patches_MD=patches_NPD.flatten(0, 1),
        )

    def _patches(self, image_NCHW: Tensor) -> Tensor:
        """float (N, P, D). Without any picture a black one is encoded, so that every rank uses every parameter."""
        if not len(image_NCHW):
            image_NCHW = image_NCHW.new_zeros(1, 3, *2 * (self.picture.image_size,))
        return self.family.patches(self.vlm, normalised(image_NCHW, self.vlm.dtype))

    def _outputs(self, row: _Row, prefix_B: Tensor, **settings: Any) -> Any:
        is_image_BS = row.ids_BS == self.vlm.config.image_token_id
        # The image token may lie beyond the embedding table: its place is taken by a patch, so any row will do.
        embedded_BSD = self.vlm.get_input_embeddings()(row.ids_BS.masked_fill(is_image_BS, 0))
        patches_BSD = row.patches_MD[row.patch_BS.clamp(min=0)].to(embedded_BSD.dtype)
        place_BS = torch.arange(row.ids_BS.shape[1], device=row.ids_BS.device).expand(len(row.ids_BS), -1)
        return self.vlm.model(
            inputs_embeds=torch.where((row.patch_BS >= 0)[..., None], patches_BSD, embedded_BSD),
            attention_mask=seen_by(row.real_BS, prefix_B if self.family.sees_whole_prefix else None),
            position_ids=self.family.positions(self.vlm.config, place_BS, row.pictures_B),
            **settings,
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.vlm.get_output_embeddings()(hidden)
        cap = getattr(self.vlm.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Rows ready for the model, padded at the right."""

    ids_BS: Tensor
    patch_BS: Tensor
    """int64: row of `patches_MD` that stands there; -1: no patch."""
    real_BS: Tensor
    pictures_B: Tensor
    """int64: pictures that it begins with."""
    first_token_B: Tensor
    """int64: position of the first token, after the pictures."""
    length_B: Tensor
    """int64: real positions."""
    patches_MD: Tensor
    """Patches of all pictures of the batch."""


def seen_by(real_BS: Tensor, prefix_B: Tensor | None) -> Tensor:
    """bool (B, 1, S, S): which positions (last axis) a position attends to: the real ones up to itself, and a row's
    first `prefix_B` see each other.

    transformers takes a mask of four axes as it is. One of two axes it would look at on the host, to see whether
    anything is masked, and the host would wait for the device. Padding sees itself, as no softmax may be empty.
    """
    place_S = torch.arange(real_BS.shape[1], device=real_BS.device)
    seen_BSS = (place_S <= place_S[:, None])[None]
    if prefix_B is not None:
        inside_BS = place_S < prefix_B[:, None]
        seen_BSS = seen_BSS | inside_BS[:, None] & inside_BS[..., None]
    own_SS = place_S == place_S[:, None]
    return (seen_BSS & real_BS[:, None] | own_SS)[:, None]
