"""The detector service: encoded images and a label in, bounding boxes out, over HTTP."""
