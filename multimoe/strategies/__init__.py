"""From scores to experts: the published routers in batches, and the distributions of ordered choices they draw from."""
