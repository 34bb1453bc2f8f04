"""The labelled text of the benchmark of the method: one module per task, and those that fetch and read documents."""
