"""What lies on disk: atomic, checksummed, queryable. Imports `bind_core` only."""
