"""Turns the declarations in api/ into C. Standard library only; no function name appears in here."""
