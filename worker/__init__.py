"""The worker: the method (which layer, which delta, how good) and the jobs that run it.

3 method    edit_dataset, gradients, saliency, editor, losses, null_space, intervals, evaluation
4 machine   training
5 glue      jobs
6 entry     main
"""
