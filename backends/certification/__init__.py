"""Evidence for the losslessness certificate: outputs of any engine, scored by the target."""
