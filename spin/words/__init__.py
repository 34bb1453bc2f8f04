"""The words of a text as features: their terms, and a regression that gives logits without the backbone."""
