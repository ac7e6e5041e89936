"""Short versions of the scripts here: damaged files of a run, and wrong inputs of the command line."""

from pathlib import Path

import pytest

from tests.reliability.fuzzed_records import fuzz
from tests.reliability.wrong_inputs import INPUTS, Wrong, answers
from tests.support.commands import Forking

OTHERS_TEST = {"report", "publish", "doctor", "regress", "list"}  # are answered before torch is loaded
QUICK = [wrong for wrong in INPUTS if not wrong.leaves and wrong.words[0] not in OTHERS_TEST]


def test_a_damaged_file_of_a_run_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 16, seed=14, every=8)
    assert [one for one in found if one.outcome == "traceback"] == []
    assert {one.kind for one in found} >= {"record", "operations"}  # what is drawn goes by the files' own names
    assert sum(one.outcome == "named" for one in found) > 5


@pytest.mark.parametrize("wrong", QUICK[::6], ids=lambda wrong: " ".join(wrong.words[:2]))
def test_a_wrong_input_is_answered_by_a_sentence(forking: Forking, wrong: Wrong) -> None:
    (answer,) = answers([wrong], forking)
    assert not answer.complaint, answer.printed
