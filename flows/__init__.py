"""Compositions: what happens, in which order."""
