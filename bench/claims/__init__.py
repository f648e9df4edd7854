"""The ledger: claims, thresholds and verdicts."""
