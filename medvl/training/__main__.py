"""One of several processes of a run, started by the first; see :mod:`medvl.training.ranks`."""

from medvl.training.run import take_part

if __name__ == "__main__":
    take_part()
