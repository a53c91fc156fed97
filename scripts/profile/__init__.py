"""Show a run's profile, alone or beside another run's: a table, pages, a trace."""
