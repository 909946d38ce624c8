"""Names as they may come, hostile ones among them, for tests of what is written and shown."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NAMES = st.one_of(st.text(), st.text("[]:/=+-@'\t\r\n\x1b\x00\ud800\u202e,;\"a1", max_size=8), st.text(min_size=100))
EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 30)),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
