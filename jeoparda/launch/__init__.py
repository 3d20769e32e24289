"""Stages as Slurm jobs: `jeoparda submit`. The only home of submitit.

`site` says how jobs look at a site, `script` makes the job script, `job` is what its ranks run, `watch` tells how a
job stands and how it ended, `command` is the command line. submitit is imported when a script is made.
"""
