"""What runs beside the job: the detector service and the presets of the model server."""
