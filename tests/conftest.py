"""Settings of hypothesis for all tests: the same examples on every run."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tqcodec",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tqcodec")
