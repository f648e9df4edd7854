"""What only one suite reports: its tables and figures, one file for each suite."""
