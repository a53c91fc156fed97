"""Image rules that the job and the detector service share; it needs Pillow only."""
