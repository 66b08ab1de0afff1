"""What strangers put before the page: files and uploads, and answers, names and ratings that would be scripts.

Apart from the other tests of the page, because the drill opens a browser of its own.
"""

import pytest
from drills.page import no_file_leaves, no_script_runs
from page_world import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # Gradio's own
    pytest.mark.filterwarnings("ignore:A `<script>` tag:UserWarning"),  # what it says of some of the payloads
]


def test_no_file_leaves_by_the_page_and_no_upload_runs() -> None:
    assert [row for row in no_file_leaves("quick") if not row.met] == []


def test_nothing_that_an_answer_brings_runs_or_asks_another_host() -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    assert [row for row in no_script_runs("quick") if not row.met] == []
