"""jeoparda: deep learning on satellite archives, on Slurm clusters and smaller machines."""

__version__ = "0.1.0"
