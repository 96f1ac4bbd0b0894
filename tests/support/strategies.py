"""Strategies of hypothesis for Braze's responses, from nearly valid to any JSON."""

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
NUMBERS = st.dictionaries(st.sampled_from(["sent", "opens", "new_statistic"]), JSON)
ROWS = (
    st.fixed_dictionaries({}, optional={"variation_api_id": JSON, "variation_name": JSON, "sent": JSON})
    | NUMBERS
    | JSON
)
ENTRIES = st.fixed_dictionaries(
    {"time": st.dates().map(str) | st.just("2026-03-03") | JSON},
    optional={
        "messages": st.dictionaries(st.text(max_size=5), st.lists(ROWS, max_size=4) | JSON) | JSON,
        "revenue": JSON,
    },
)
ANSWERS = st.fixed_dictionaries({"data": st.lists(ENTRIES | JSON, max_size=5) | JSON}) | JSON
"""Responses from nearly valid to any JSON."""
