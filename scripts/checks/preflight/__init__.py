"""Tell, before any weight is loaded, that a model server cannot start or would answer this job wrongly."""
