"""Bringing the features of the current model back to where the previous model had them: ELI and plain baselines."""
