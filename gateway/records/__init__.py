"""What is written down of requests, by threads that hold nobody up when the store is slow."""
