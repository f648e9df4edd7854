"""What the user requested: options, presets, and one parser for each kind of value."""
