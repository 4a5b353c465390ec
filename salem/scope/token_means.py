"""The mean token state of each text, which a sentence encoder's embeddings and a judge's logits are made of.

BERT encoders (Devlin et al., "BERT", NAACL 2019) read all texts as one row of tokens: no time goes into
padding or masks, and the other texts of a batch change nothing but the last bits of a result. Every other
model runs its own forward pass, padded. Must not know what the means are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel, PreTrainedTokenizerBase
from transformers.models.bert.modeling_bert import BertLayer

Fields = Mapping[str, Sequence[Sequence[int]]]  # what a tokenizer says of n texts, by the field's name


def token_means(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The fastest module that maps the fields of n texts to the means [n, d] of a model's last states."""
    return PackedBert(model) if type(model) is BertModel else PaddedModel(model, tokenizer)


class PaddedModel(nn.Module):
    """The mean token states of any encoder."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model, self._tokenizer = model, tokenizer

    def forward(self, fields: Fields) -> Tensor:
        """The fields of n texts -> [n, d]"""
        padded = self._tokenizer.pad(dict(fields), return_tensors="pt")
        states = self.model(**padded).last_hidden_state  # [n, t, d]
        mask = padded["attention_mask"][..., None].to(states.dtype)
        means: Tensor = (states * mask).sum(1) / mask.sum(1)
        return means


class PackedBert(nn.Module):
    """The mean token states of a BERT encoder. It has copies of the blocks' weights, laid out for speed.

    The linear layers run over the tokens of all texts, and attention runs over texts of the same length.
    """

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.blocks = nn.ModuleList(PackedBlock(layer) for layer in model.encoder.layer)

    def forward(self, fields: Fields) -> Tensor:
        """The fields of n texts -> [n, d]. Fastest if texts of the same length are neighbors."""
        tokens = fields["input_ids"]
        lengths = [len(text) for text in tokens]
        states = self.embeddings(
            input_ids=_row(tokens),
            token_type_ids=_row(fields["token_type_ids"]) if "token_type_ids" in fields else None,
            position_ids=_row([range(length) for length in lengths]),
        )[0]  # [t, d]
        runs = [(length, len(list(same))) for length, same in groupby(lengths)]
        for block in self.blocks:
            states = block(states, runs)
        return torch.stack([text.mean(0) for text in states.split(lengths)])


class PackedBlock(nn.Module):
    """One block of a BERT encoder."""

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        attention, own = layer.attention, layer.attention.self
        self._num_heads: int = own.num_attention_heads
        self._activation: Callable[[Tensor], Tensor] = layer.intermediate.intermediate_act_fn
        self.attend = JoinedLinear(own.query, own.key, own.value)
        self.mix = JoinedLinear(attention.output.dense)
        self.mix_norm = attention.output.LayerNorm
        self.widen = JoinedLinear(layer.intermediate.dense)
        self.narrow = JoinedLinear(layer.output.dense)
        self.norm = layer.output.LayerNorm

    def forward(self, states: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
        """States of all tokens [t, d] -> [t, d]; a run is the length of texts in a row, and their number."""
        parts = self.attend(states).split([length * number for length, number in runs])
        mixed = torch.cat([self._attention(part, *run) for part, run in zip(parts, runs, strict=True)])
        states = self.mix_norm(self.mix(mixed) + states)
        found: Tensor = self.norm(self.narrow(self._activation(self.widen(states))) + states)
        return found

    def _attention(self, joined: Tensor, length: int, number: int) -> Tensor:
        """Queries, keys, and values [t, 3 * d] of texts of one length -> [t, d]"""
        query, key, value = joined.view(number, length, 3, self._num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [number, heads, length, d / heads]
        return mixed.transpose(1, 2).reshape(len(joined), -1)


class JoinedLinear(nn.Module):
    """Linear layers with the same input as one matrix product; the transposed weight suits few rows."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.detach() for layer in layers]).T.contiguous()  # [d_in, d_out]
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[t, d_in] -> [t, d_out]"""
        return torch.addmm(self.bias, x, self.weight)


def _row(lists: Sequence[Sequence[int]]) -> Tensor:
    """Lists of numbers, one after the other [1, t]"""
    return torch.tensor([[number for each in lists for number in each]])
