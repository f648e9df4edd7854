"""From records to numbers, verdicts, certificates and comparisons."""
