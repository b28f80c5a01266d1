"""Which worker serves a step: filter -> score (0..1) -> pick. No tables and no queues here."""
