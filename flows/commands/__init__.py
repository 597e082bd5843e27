"""The commands of `bind-data`, by what they are for."""
