"""The benchmark: native and remote in turn on the same GPU, and the round-trip census of any command."""
