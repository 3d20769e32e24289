"""Several trainings one after the other in the same ranks: `python -m tests.parallel.many BACKEND WORDS...`, each WORDS
the key=value words of one run, as JSON. Starting ranks takes longer than fifty small steps."""

import json
import sys

from jeoparda import train
from jeoparda.comm import start
from jeoparda.config import load


def main(backend: str, *runs: str) -> None:
    comm = start(backend)
    for words in runs:
        train.run(load(train.TrainRecipe, None, json.loads(words)), comm)
    comm.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
