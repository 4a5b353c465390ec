"""Hosted models small enough to build in milliseconds: every architecture, random weights, a real tokenizer.

Weights are drawn wide enough that different inputs get different answers. Everything is seeded: the same call
gives the same network. Does not know what the tests do with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LongformerConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3Config,
    RobertaConfig,
    SwitchTransformersConfig,
    T5Config,
    XLMConfig,
    XLNetConfig,
)

from salem.models.network import Network, as_network
from salem.records import Task

LABELS = ("refund", "delivery", "login", "other")
MAX_TOKENS = 48
_WIDTH, _HEADS, _BLOCKS, _INNER = 16, 4, 3, 24
_PAD, _BOS, _EOS, _UNK = "<pad>", "<s>", "</s>", "<unk>"
_PAD_ID, _BOS_ID, _EOS_ID = 0, 1, 2
_CORPUS = (
    "where is my order and when will the parcel arrive at the door",
    "i want my money back for the broken lamp please send a refund now",
    "the password does not work and i cannot log in to my account today",
    "The capital of France is Paris. The capital of Peru is Lima.",
    "Who wrote the book? Anna wrote it in Rome, Berlin or Madrid!",
)


@dataclass(frozen=True)
class _Architecture:
    """How to build a tiny model of one kind: its config, its first task, and its tokenizer's habits."""

    config: Callable[[], PretrainedConfig]
    task: Task
    tokenizer: str  # a name that `tiny_tokenizer` knows


def _sizes(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 200,
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _BLOCKS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": _PAD_ID,
        "bos_token_id": _BOS_ID,
        "eos_token_id": _EOS_ID,
        **more,
    }


def _deberta() -> PretrainedConfig:
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
    shared = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
    return DebertaV2Config(
        **_sizes(type_vocab_size=0, conv_kernel_size=3, conv_act="gelu", **relative, **shared)
    )


def _distilbert() -> PretrainedConfig:
    return DistilBertConfig(
        vocab_size=200, dim=_WIDTH, hidden_dim=_INNER, n_layers=_BLOCKS, n_heads=_HEADS,
        max_position_embeddings=MAX_TOKENS, pad_token_id=_PAD_ID,
    )  # fmt: skip


def _modernbert() -> PretrainedConfig:
    windows = {"local_attention": 4, "global_attn_every_n_layers": 2}
    return ModernBertConfig(**_sizes(cls_token_id=_BOS_ID, sep_token_id=_EOS_ID, **windows))


def _t5() -> PretrainedConfig:
    return T5Config(
        vocab_size=200, d_model=_WIDTH, d_kv=4, d_ff=_INNER, num_layers=_BLOCKS, num_decoder_layers=2,
        num_heads=_HEADS, feed_forward_proj="gated-gelu", relative_attention_num_buckets=8,
        pad_token_id=_PAD_ID, eos_token_id=_EOS_ID, decoder_start_token_id=_PAD_ID,
    )  # fmt: skip


def _bart() -> PretrainedConfig:
    return BartConfig(
        vocab_size=200, d_model=_WIDTH, encoder_layers=_BLOCKS, decoder_layers=2, encoder_ffn_dim=_INNER,
        decoder_ffn_dim=_INNER, encoder_attention_heads=_HEADS, decoder_attention_heads=_HEADS,
        max_position_embeddings=MAX_TOKENS, pad_token_id=_PAD_ID, bos_token_id=_BOS_ID, eos_token_id=_EOS_ID,
        decoder_start_token_id=_EOS_ID, forced_eos_token_id=None,
    )  # fmt: skip


def _gpt2() -> PretrainedConfig:
    return GPT2Config(
        vocab_size=200, n_embd=_WIDTH, n_inner=_INNER, n_layer=_BLOCKS, n_head=_HEADS, n_positions=MAX_TOKENS,
        pad_token_id=_PAD_ID, bos_token_id=_EOS_ID, eos_token_id=_EOS_ID,
    )  # fmt: skip


def _opt() -> PretrainedConfig:
    return OPTConfig(**_sizes(ffn_dim=_INNER, word_embed_proj_dim=_WIDTH, bos_token_id=_EOS_ID))


def _grouped(**more: Any) -> dict[str, Any]:
    return _sizes(num_key_value_heads=2, head_dim=4, **more)


def _experts(**more: Any) -> dict[str, Any]:
    return _sizes(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **more)


_SHARED_EXPERT = {
    "num_experts": 4,
    "moe_intermediate_size": _INNER,
    "shared_expert_intermediate_size": _INNER,
}


def _falcon() -> PretrainedConfig:
    return FalconConfig(
        vocab_size=200, hidden_size=_WIDTH, num_hidden_layers=_BLOCKS, num_attention_heads=_HEADS,
        pad_token_id=_PAD_ID, bos_token_id=_EOS_ID, eos_token_id=_EOS_ID,
    )  # fmt: skip


def _switch() -> PretrainedConfig:
    return SwitchTransformersConfig(
        vocab_size=200, d_model=_WIDTH, d_kv=4, d_ff=_INNER, num_layers=2, num_decoder_layers=2,
        num_heads=_HEADS, num_experts=4, num_sparse_encoder_layers=2, num_sparse_decoder_layers=2,
        pad_token_id=_PAD_ID, eos_token_id=_EOS_ID, decoder_start_token_id=_PAD_ID,
    )  # fmt: skip


def _xlm() -> PretrainedConfig:
    return XLMConfig(
        vocab_size=200, emb_dim=_WIDTH, n_layers=_BLOCKS, n_heads=_HEADS, max_position_embeddings=MAX_TOKENS,
        pad_index=_PAD_ID, pad_token_id=_PAD_ID, n_langs=1,
    )  # fmt: skip


def _xlnet() -> PretrainedConfig:
    return XLNetConfig(
        vocab_size=200, d_model=_WIDTH, n_layer=_BLOCKS, n_head=_HEADS, d_inner=_INNER, pad_token_id=_PAD_ID
    )


_CLASSIFIER, _TRANSLATOR, _WRITER = (
    Task.SEQUENCE_CLASSIFICATION,
    Task.TEXT2TEXT_GENERATION,
    Task.TEXT_GENERATION,
)
_ARCHITECTURES = {
    "bert": _Architecture(lambda: BertConfig(**_sizes()), _CLASSIFIER, "pairs"),
    "distilbert": _Architecture(_distilbert, _CLASSIFIER, "pairs"),
    "roberta": _Architecture(
        lambda: RobertaConfig(**_sizes(type_vocab_size=1)),
        _CLASSIFIER,
        "pairs-untyped",
    ),
    "deberta-v2": _Architecture(_deberta, _CLASSIFIER, "pairs"),
    "modernbert": _Architecture(_modernbert, _CLASSIFIER, "pairs-untyped"),
    "t5": _Architecture(_t5, _TRANSLATOR, "metaspace-eos"),
    "bart": _Architecture(_bart, _TRANSLATOR, "pairs-untyped"),
    "gpt2": _Architecture(_gpt2, _WRITER, "bytes"),
    "opt": _Architecture(_opt, _WRITER, "bytes-eos-first"),
    "llama": _Architecture(lambda: LlamaConfig(**_grouped()), _WRITER, "metaspace-bos"),
    "qwen3": _Architecture(lambda: Qwen3Config(**_grouped(tie_word_embeddings=True)), _WRITER, "bytes"),
    "gemma": _Architecture(lambda: GemmaConfig(**_grouped()), _WRITER, "metaspace-bos"),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
# Built like the others, but each for what is peculiar to it; not all of them can be edited.
_ARCHITECTURES |= {
    "albert": _Architecture(lambda: AlbertConfig(**_sizes(embedding_size=8)), _CLASSIFIER, "pairs"),
    "falcon": _Architecture(_falcon, _WRITER, "bytes"),
    "longformer": _Architecture(
        lambda: LongformerConfig(**_sizes(attention_window=[32] * _BLOCKS)), _CLASSIFIER, "pairs-untyped"
    ),
    "mixtral": _Architecture(lambda: MixtralConfig(**_experts()), _WRITER, "bytes"),
    "qwen2-moe": _Architecture(lambda: Qwen2MoeConfig(**_experts(**_SHARED_EXPERT)), _WRITER, "bytes"),
    "switch": _Architecture(_switch, _TRANSLATOR, "metaspace-eos"),
    "xlm": _Architecture(_xlm, _CLASSIFIER, "pairs"),
    "xlnet": _Architecture(_xlnet, _CLASSIFIER, "pairs"),
}
_LOADERS: dict[Task, Any] = {
    _CLASSIFIER: AutoModelForSequenceClassification,
    _TRANSLATOR: AutoModelForSeq2SeqLM,
    _WRITER: AutoModelForCausalLM,
}
# The special tokens that a tokenizer puts around one text ($A) and a pair; token types follow the colon.
_TEMPLATES: dict[str, tuple[str, str] | None] = {
    "pairs": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
    "pairs-untyped": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "metaspace": None,
    "metaspace-eos": ("$A </s>", "$A </s> $B </s>"),
    "metaspace-bos": ("<s> $A", "<s> $A $B"),
    "prepend-bos": ("<s> $A", "<s> $A $B"),
    "bytes": None,
    "bytes-eos-first": ("</s> $A", "</s> $A </s> $B"),
}


def first_task(architecture: str) -> Task:
    """The task that an architecture is tested with unless a test says otherwise."""
    return _ARCHITECTURES[architecture].task


@cache
def tiny_tokenizer(habits: str) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of 200 entries. `habits`: how it splits (`bytes`: GPT-2's way, else SentencePiece's)
    and which special tokens it adds around a text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=_UNK))
    _set_splitting(tokenizer, habits)
    specials = [_PAD, _BOS, _EOS, _UNK]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    template = _TEMPLATES[habits]
    if template is not None:
        marks = [(_BOS, _BOS_ID), (_EOS, _EOS_ID)]
        tokenizer.post_processor = processors.TemplateProcessing(*template, marks)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if habits == "pairs" else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BOS, eos_token=_EOS, unk_token=_UNK,
        model_input_names=names, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _set_splitting(tokenizer: Tokenizer, habits: str) -> None:
    if habits.startswith("bytes"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif habits.startswith(
        "prepend"
    ):  # Llama 2: a mark is put before every text, even one that begins with a space
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(marks)
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()


def tiny_model(architecture: str, task: Task | None = None) -> PreTrainedModel:
    """A model with random weights; never the same object twice.

    Torch is kept to one thread from here on: over matrices this small, threads only wait for one another.
    """
    torch.set_num_threads(1)
    config = _ARCHITECTURES[architecture].config()
    task = task or first_task(architecture)
    if task is _CLASSIFIER:
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: index for index, label in enumerate(LABELS)}
    model = _LOADERS[task].from_config(config)
    draw = torch.Generator().manual_seed(sum(architecture.encode()))
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=draw)
            if weight.dim() == 1:
                weight += 0.1 * noise
            else:
                weight.copy_(noise * (0.7 if "emb" in name or "shared" in name else 2 * _WIDTH**-0.5))
    return model


def build_network(architecture: str, task: Task | None = None, *, habits: str | None = None) -> Network:
    """A new network, for tests that change it. `habits` gives it another tokenizer."""
    tokenizer = tiny_tokenizer(habits or _ARCHITECTURES[architecture].tokenizer)
    return as_network(tiny_model(architecture, task), tokenizer, task or first_task(architecture))


@cache
def tiny_network(architecture: str, task: Task | None = None) -> Network:
    """The network of this kind that all tests of a session share. They must not change it."""
    return build_network(architecture, task)


def save_tiny(folder: Path, architecture: str, task: Task | None = None, **options: Any) -> Path:
    """Write a loadable folder: config, tokenizer and safetensors; `options` go to `save_pretrained`."""
    tiny_model(architecture, task).save_pretrained(folder, **options)
    tiny_tokenizer(_ARCHITECTURES[architecture].tokenizer).save_pretrained(folder)
    return folder
