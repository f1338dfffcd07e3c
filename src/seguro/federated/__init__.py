"""One training over many sites: the data stay, weights travel.

The core (messages, one plan, local training, aggregation, rounds) knows no transport; Flower around it is
imported only by the modules that need it.
"""
