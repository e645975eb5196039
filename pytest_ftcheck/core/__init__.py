"""The nouns: Trace, Recipe, Intent, Verdict and what they are made of. Knows no other room."""
