"""A run's profile as people see it: a table, pages, a trace; alone or beside another run's."""
