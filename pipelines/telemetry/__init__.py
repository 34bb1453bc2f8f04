"""What the operators of a nightly job look at: logs with run names, traces, lineage and the gauges of nights."""
