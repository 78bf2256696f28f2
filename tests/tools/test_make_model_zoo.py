from __future__ import annotations

from mask2former import model_zoo
from tools.make_model_zoo import TARGET, render


def test_the_model_zoo_is_what_the_table_says() -> None:
    text = TARGET.read_text(encoding="utf-8")
    assert text == render(), "run `python tools/make_model_zoo.py`"
    for name in model_zoo.list_models():
        assert f"(configs/{name}.yaml)" in text
    assert "44.0 M" in text  # R50 with 100 queries, 133 classes
