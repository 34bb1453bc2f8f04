"""Other libraries that classify text, as rows of the benchmark of the method."""
