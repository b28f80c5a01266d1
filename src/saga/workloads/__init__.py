"""What agents ask of a fleet: seeded generators, fitted profiles and readers of real traces."""
