"""Where it runs: on Ray Serve, one application an expert, or in a single process."""
