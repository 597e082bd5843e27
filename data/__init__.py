"""Shipped defaults: the configuration and the descriptions of parameters."""
