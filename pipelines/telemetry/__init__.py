"""Reports to the operators of a nightly job: logs with run names, traces, lineage and the gauges of nights."""
