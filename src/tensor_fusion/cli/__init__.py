"""The command tensor-fusion: everything that prints."""
