"""One hypothesis profile for everybody: the same examples on every machine and every run."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")
