from pathlib import Path

from common.progress import listening
from scoring.inputs import InputFile
from scoring.job import Columns, Job
from scoring.parts import Parts
from scoring.progress import Progress
from tables.kinds import Format, Kind


def test_only_the_end_is_a_hundred_percent(tmp_path: Path) -> None:
    file = InputFile(str(tmp_path / "a.csv"), "a.csv", Kind(Format.CSV, None), 1_000, 0)
    job = Job((file,), tmp_path / "out.csv", Columns(None, ("label", "score", "version")), 1, 4_096)
    job.work.mkdir()
    lines: list[str] = []
    with listening(lines.append):
        progress = Progress(job, Parts(job))
        progress.add(0, 256, 0.9999)
        progress.end()
    assert [line.split(", ")[:2] for line in lines] == [
        ["256 rows", "99.9 % of the input"],
        ["256 rows", "100.0 % of the input"],
    ]
