"""Sharing the keys of a batch of requests out among workers: the schedule of the paged kernels.

Worker w begins at request ``schedule[w, 0]`` and its chunk ``schedule[w, 1]``, and ends where the next one begins.
"""
