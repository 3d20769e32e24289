"""What the feed costs: `python -m benchmarks.feed WHAT`.

`stores` makes what is read, `loaders` and `peers` are what is measured, each in a process of its own, `measure` drives
them in turn, `gpu` is for where there is one.
"""
