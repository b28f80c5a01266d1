"""From runs to what people read: statistics, tables, a report. Refuses to know how a run came about."""
