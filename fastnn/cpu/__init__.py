"""The CPU target: kernels over memory, compiled by Numba, and the engine that runs a table of them."""
