"""Forget documents everywhere: in outputs, in the store of a training, and in the registry."""
