"""How passes run: eager, native kernels, packed and quantised weights, and what this machine can."""
