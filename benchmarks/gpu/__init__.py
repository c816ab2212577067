"""The parts of `benchmarks.gpu_probe`: what a GPU can do, measured where the design of a CUDA target depends on it."""
