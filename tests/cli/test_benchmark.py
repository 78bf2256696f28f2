"""The choices that `mask2former benchmark --help` shows without importing what is measured."""

from mask2former.benchmarks import backends, models, training
from mask2former.benchmarks.suites import SUITES
from mask2former.cli import benchmark


def test_choices_are_those_of_the_suites() -> None:
    assert set(benchmark.DTYPES) == set(models.DTYPES)
    assert benchmark.TASKS == models.TASKS
    assert benchmark.BACKENDS == backends.COMPILED
    assert benchmark.MEASURES == training.MEASURES
    assert set(benchmark._SUITES) == {*SUITES, benchmark.REPORT}
