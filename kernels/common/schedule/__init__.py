"""Sharing the keys of a batch of requests out among workers: the schedule of the paged kernels.

Worker w begins at request ``schedule[w, 0]`` and its chunk ``schedule[w, 1]``, and ends where the next one begins. The format
is DeepGEMM's for sm90, whose kernels walk chunk by chunk until they stand on their end: a beginning is a chunk that its request
has, or, where no chunk is left, the number of requests and 0.
"""
