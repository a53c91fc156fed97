"""The services that the job asks: the detector and the model server."""
