"""The demonstration: a worker, and a CUDA program that uses it through the client files."""
