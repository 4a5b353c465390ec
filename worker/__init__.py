"""The worker: makes an edit on a GPU host and measures it.

Rooms, top first. A room imports only from rooms below it (`.importlinter` holds the rule):

    runtime         the RQ worker process and its work-horse
    jobs            one module per kind of job
    pipeline        the steps of an edit: load, dataset, budget, layer, make, measure, gate, publish
    attempts        one attempt of a job: lease, progress reports, reading and writing storage
    recipes         how a delta is made: scoped, mend, ridge, paper
    hypernetworks   editors (MEND), trained for one job or ahead of time
    evaluation      edit accuracy, generalization, drawdown, locality, neighborhood
    selection       which layer: saliency and trial edits
    training        the training loop and the closed form
    activations     trunk states, gradients, and the cache that keeps them between jobs
    dataset         edit, adapt, and pass samples; near neighbors; augmentations
    judge           training data and training of the scope judge
    numerics        losses, intervals, projections

Must not know HTTP or import `app`. Start with `pipeline`; a new recipe is one new file in `recipes`.
"""
