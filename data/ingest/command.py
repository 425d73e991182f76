"""`hermesflow ingest`: the pool of a config out of a collection of pictures with captions."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError
from data.ingest.formats import Place, hidden_files, open_source, recognise
from data.ingest.places import fingerprint
from data.ingest.questions import open_questions
from data.ingest.raw import Fields
from data.ingest.run import BAD, TWINS, Job, ingest
from data.ingest.state import Counts


@dataclass(frozen=True)
class Collection:
    """What is read, how, and where the pool goes; the options of `hermesflow ingest`."""

    source: str
    """A folder, a file, or OWNER/NAME@COMMIT of the Hugging Face hub."""
    to: Path
    format: str | None = None
    images: Path | None = None
    questions: Path | None = None
    links: tuple[Path, ...] = ()
    encoding: str | None = None
    test_records: int = 0
    test_share: float = 0.0
    split: str | None = None
    subset: str | None = None
    max_bad_share: float = 0.01
    max_caption: int = 2000
    fields: Mapping[str, str] = field(default_factory=dict)
    """Names of fields in the source, by those of `data.ingest.raw.NAMES`."""


def make_pool(given: Collection) -> None:
    """Write `pool/`, `test/` and `bad.parquet`, with what was not used.

    Started again with the same arguments it goes on where it stopped.
    """
    _check(given)
    fields = dict(given.fields)
    place = Place(
        given.source, given.format, given.images, fields, given.split, given.subset,
        given.links, given.encoding,
    )  # fmt: skip
    kind, source = recognise(place), open_source(place)
    print(f"{given.source}: format {kind}", file=sys.stderr)
    for path in hidden_files(Path(given.source)):
        print(f"  {path.name} left out, since its name hides it", file=sys.stderr)
    job = Job(
        to=given.to,
        arguments={
            "source": str(Path(given.source).resolve()) if Path(given.source).exists()
            else given.source,
            "format": kind,
            "images": str(given.images.resolve()) if given.images else None,
            "questions": _questions_of(given.questions),
            "fields": fields,
            "links": [str(link.resolve()) for link in given.links],
            "encoding": given.encoding,
            "split": given.split,
            "subset": given.subset,
            "test_records": given.test_records,
            "test_share": given.test_share,
            "max_caption": given.max_caption,
        },
        test_records=given.test_records,
        test_share=given.test_share,
        max_bad_share=given.max_bad_share,
        max_caption=given.max_caption,
    )  # fmt: skip
    with open_questions(given.questions, Fields(fields)) as questions:
        counts = ingest(source, questions, job)
    _report(counts, given.to)
    if counts.test < given.test_records:
        print(
            f"fewer are held out than --test-records = {given.test_records}, since larger groups "
            "of pictures that look alike stay in the pool"
        )


def _check(given: Collection) -> None:
    if given.to.resolve().is_relative_to(Path(given.source).resolve()):
        raise UserError(f"--to {given.to} lies within the source; give a folder elsewhere")
    if given.test_records and given.test_share:
        raise UserError("--test-records and --test-share exclude each other; give one")
    if given.test_records < 0 or given.max_caption < 1:
        raise UserError("--test-records and --max-caption are counts; give positive numbers")
    for name in ("test_share", "max_bad_share"):
        value = getattr(given, name)
        if not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} = {value} is no share; give 0 to 1")


def _questions_of(path: Path | None) -> str | None:
    """What tells a file of questions from another one."""
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"--questions {path} is no file; give a JSON file of questions")
    return fingerprint([path])


def _report(counts: Counts, to: Path) -> None:
    print(f"{counts.pool} records for the pool, {counts.test} held out, of {counts.seen}")
    for title, reasons in (
        ("set aside", counts.bad),
        ("questions dropped", counts.bad_questions),
        ("read otherwise than it stands", counts.changes),
    ):
        for reason, number in reasons.most_common():
            print(f"  {title}: {number}, {reason}")
    if counts.joined:
        print(f"  {counts.joined} rows are further captions of a picture, and joined its record")
    if counts.equal:
        print(f"  {counts.equal} records show a picture that another has, pixel for pixel")
    if counts.twins:
        examples = ", ".join(f"{one!r} like {other!r}" for one, other in counts.twin_examples)
        print(
            f"  {counts.twins} pairs are near twins, and on one side: {examples}; {to / TWINS} "
            "lists them"
        )
    if counts.bad or counts.bad_questions:
        print(f"  {to / BAD} lists what was set aside and dropped")
    if counts.unmet_questions:
        print(
            f"  {counts.unmet_questions} of {counts.questions} questions of the file met no "
            f"record, such as those for {', '.join(map(repr, counts.unmet_examples))}; ids of both "
            "must be equal (--id-field)"
        )
    if counts.without_questions:
        print(
            f"{counts.without_questions} records have no questions, which images are scored by; "
            "give some with --questions, into another folder, or have them written "
            "(section `questions` of the config), before you run on this pool"
        )
    test = to / "test" if counts.test else "FOLDER OF HELD-OUT RECORDS"
    print("put into your config:")
    print(f"  data: {{source: parquet, pool: {to / 'pool'}, test: {test}}}")
    print("and set `judge: reader` under `evaluation`, then `hermesflow check`")
