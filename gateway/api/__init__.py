"""The REST API: one module a group of endpoints, and what they share. It knows no Ray."""
