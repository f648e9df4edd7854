"""The engines that can be measured, one per file."""
