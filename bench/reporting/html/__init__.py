"""The report: one HTML page of a folder of results."""
