"""Everything that is stored, in every format: decodings, runs, journals, environments and their files."""
