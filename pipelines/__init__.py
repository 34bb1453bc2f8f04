"""The method over many machines: shards, stages and the registry."""
