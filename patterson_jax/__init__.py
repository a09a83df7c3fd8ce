"""From Patterson maps to atoms: `simulation` makes cases, `learning` trains a network on them, `solving` uses it."""
