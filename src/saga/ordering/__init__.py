"""Who is next: each policy names a rank, and the lowest rank runs first. No queues here, only ranks."""
