"""Run several processes: revisions side by side (across), or several machines (sweep)."""
