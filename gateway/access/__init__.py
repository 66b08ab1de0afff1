"""Who may do what, how much of it, and when: keys, limits, quotas, the queue, and the end of it all."""
