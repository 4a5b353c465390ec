"""Makes the training data of the scope judge, which will tell paraphrases of an edit from its neighbors.

`relations.toml` and `paraphrases.toml` are the library, `pairs` turns it into pairs of texts, and `train`
trains a sentence encoder on them. No job uses the judge yet. Must not know scopes, jobs, or storage.
Start with `pairs`.
"""
