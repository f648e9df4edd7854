"""Turn prompt files into token ids, and hold the built-in prompt sets."""
