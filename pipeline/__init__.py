"""What the job does to the data: read -> detect -> crop -> ask -> write."""
