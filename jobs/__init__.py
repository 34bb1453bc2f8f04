"""The `spin` command."""
