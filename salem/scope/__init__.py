"""Where an edit applies: a gate per input, computed from the hosted model's own states.

Must not know what an entry does when it fires, or how the metric is trained. Start with `scope`. It compares
inputs by position (`features`, `metric`), by words (`lexical`), and by the base's first answer token
(`first_token`); `lookups` computes the last two only for the inputs that need them.
"""
