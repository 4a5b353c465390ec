"""Trains the scope judge, which tells a paraphrase of an edit from its near neighbors.

`relations.toml` and `paraphrases.toml` are the library, `pairs` turns it into pairs of texts, and `train`
trains the scope encoder on them and writes `salem/scope/judge.safetensors`. No job runs any of this. Must not
know jobs or storage. Start with `pairs`.
"""
