"""Suggestions for misspelt names."""

from mask2former.similar import did_you_mean

KNOWN = ["boats_train", "boats_val", "fields"]


def test_like_names_are_suggested() -> None:
    assert did_you_mean("boats_trian", KNOWN) == " (did you mean boats_train or boats_val?)"
    assert did_you_mean("boats_trian", KNOWN, first=["fields"], cutoff=0.9) == " (did you mean fields or boats_train?)"
    assert did_you_mean("zzz", KNOWN) == ""
    assert did_you_mean("zzz", KNOWN, else_all=True) == " (there are boats_train, boats_val, fields)"
