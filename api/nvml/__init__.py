"""NVML, one file for each family."""
