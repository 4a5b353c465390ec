"""Where an edit applies: a gate per input.

A text scope (`text_scope`) compares texts by a small sentence encoder, whatever model is hosted: the encoder
(`encoder`, which runs in `token_means`, with its judge in `judge_files`) reads the question that `questions`
finds in an input. A state scope (`state_scope`) compares the hosted model's own states (`features`,
`metric`), and for the inputs that need it also their words (`lexical`) and the base's first answer token
(`first_token`, `lookups`).

Must not know what an entry does when it fires, or how encoder, judge, and metric are trained. Start with
`scope`, then `text_scope`.
"""
