"""Other ways to run the same update, faster: compiled, seed by seed, as a CUDA graph."""
