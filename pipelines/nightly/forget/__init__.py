"""Forget documents: remove them from all nights of an output."""
