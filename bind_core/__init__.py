"""The science: files and arrays in, arrays out.

Knows no Prefect, writes nothing, keeps no global state, and imports nothing else of the project.
"""
