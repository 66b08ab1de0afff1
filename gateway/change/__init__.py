"""Gate versions and how they come to serve: trained, judged, tried, promoted, taken back."""
