"""The mixture itself: gate, blend, feedback, retraining. Knows no Ray, no HTTP, no UI, no concrete expert."""

__version__ = "0.1.0"
