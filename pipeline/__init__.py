"""The job: what Spotter does to images."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet until a run opens its log
