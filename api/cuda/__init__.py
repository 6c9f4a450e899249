"""The driver API, one file for each family."""
