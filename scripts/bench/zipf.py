"""Skewed traffic, and caches that it meets. Pure: adapters-load sends the one and compares with the other."""

import collections
import itertools
import random


def draws(adapters, skew, requests, seed):
    """`requests` ranks below `adapters`, of which rank n comes in proportion to 1/(n + 1)^skew. Which adapter has which rank
    is shuffled: neighbours by number are no neighbours by traffic."""
    source = random.Random(seed)
    ranked = list(range(adapters))
    source.shuffle(ranked)
    weights = list(itertools.accumulate(1 / (rank + 1) ** skew for rank in range(adapters)))
    return source.choices(ranked, cum_weights=weights, k=requests)


class Lru:
    """A cache of `slots` names that lets go of the least recently asked for."""

    def __init__(self, slots):
        self.slots, self.names = slots, collections.OrderedDict()

    def asks(self, name):
        """Whether it was there."""
        hit = name in self.names
        self.names[name] = None
        self.names.move_to_end(name)
        if len(self.names) > self.slots:
            self.names.popitem(last=False)
        return hit
