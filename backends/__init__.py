"""Models, the engines that decode with them, and the checks that an engine's output must pass."""
