"""What training reaches and costs: `python -m benchmarks.train WHAT`.

`recipes` trains docs/recipes/train-*.yaml on the synthetic archive, `loop` has the training loop by itself, which
`overhead` holds against a step written by hand, `ranks` runs on several ranks, and `gpu` where there is one.
"""
