"""The benchmark of the training engine: ``python -m benchmarks.training [--threads N] [--only networks ...]``.

Networks of many sizes beside every library that trains them, and what else decides how long training takes: optimizers,
single rows, a cold process, threads that share the CPUs, memory.  Each is a part, in a module of its own, which yields
one record for each thing that it measures; `report` reads them, `chart` draws the networks.
"""
