"""The detector service: encoded images and labels in, bounding boxes out, over HTTP."""
