"""One run of a trainer: settings, updates, checkpoints, records, and its split over ranks."""
