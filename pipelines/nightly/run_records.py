"""Records of a nightly run: its plan, what its steps count in a shard, and its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from pipelines.data.input_files import InputFile
from pipelines.data.shards import Shard
from pipelines.storage.records import from_json, to_json
from pipelines.storage.shard_log import ShardCounts, StoredOutcome
from spin.monitor.agreement import AgreementCounts, ShadowAgreement
from spin.monitor.drift import Drift

FORMAT = 5
"""of the plan and the manifest of a nightly run; a run of another format is not continued"""
STAGE = "classify"
"""name of the stage in the plan and in the manifest"""


@dataclass(frozen=True)
class RunPlan:
    """The work of a nightly run, derived once from its input files."""

    shards: tuple[Shard, ...]
    """the work, in order"""
    bad: Mapping[str, str]
    """reasons why files cannot be read, by URI"""
    documents: int
    """number of documents in all shards; an estimate where a shard is a range of bytes"""
    skipped: tuple[InputFile, ...] = ()
    """files that an earlier night has already classified"""


@dataclass(frozen=True, kw_only=True)
class DigestCounts(ShardCounts):
    """Counts of a shard in the first pass over the ids, which writes their digests."""

    bad: str | None = None
    """why the file cannot be read, None if it can"""


@dataclass(frozen=True, kw_only=True)
class DuplicateCounts(ShardCounts):
    """Counts of a hash partition in the second pass, which looks for duplicate ids; `rows` counts its ids."""

    repeats: int
    """rows whose id occurs in an earlier row"""


@dataclass(frozen=True, kw_only=True)
class ClassifyCounts(ShardCounts):
    """A classified shard: every row is predicted or a dead letter."""

    uri: str
    """URI of the input file"""
    predicted: int
    """rows with a prediction"""
    dead: int
    """number of dead letters"""
    reasons: Mapping[str, int]
    """dead letters by reason"""
    labels: Mapping[str, int]
    """predicted rows by class; a row counts for each of its classes"""
    abstained: int
    """predicted rows without a label because the decision abstains"""
    unlabelled: int
    """predicted rows without any class, including those on which the decision abstains"""
    depths: Mapping[str, int]
    """predicted rows by the block after which they exited, in decimal digits"""
    tokens: int
    """tokens that the backbone read"""
    truncated: int
    """texts that were cut at the token limit of the backbone"""
    bad: str | None = None
    """why the file cannot be read, None if it can"""
    shadow: AgreementCounts | None = None
    """agreement with the shadow, None without one"""

    @property
    def dead_letters(self) -> int:
        return self.dead


@dataclass(frozen=True, kw_only=True)
class NightCounts:
    """Counts of a night over all shards of the files that could be read."""

    rows: int
    """documents read, dead letters included"""
    predicted: int
    """rows with a prediction"""
    abstained: int
    """predicted rows without a label because the decision abstains"""
    unlabelled: int
    """predicted rows without any class, including those on which the decision abstains"""
    dead: int
    """number of dead letters"""
    tokens: int
    """tokens that the backbone read"""
    truncated: int
    """texts that were cut at the token limit of the backbone"""
    truncated_share: float
    """truncated texts per predicted row, to four digits"""
    reasons: Mapping[str, int]
    """dead letters by reason"""
    labels: Mapping[str, int]
    """predicted rows by class; a row counts for each of its classes"""
    depths: Mapping[str, int]
    """predicted rows by the block after which they exited, in decimal digits"""


@dataclass(frozen=True)
class QuarantinedFile:
    """An input file that could not be read; none of its documents is classified."""

    uri: str
    """URI of the file"""
    reason: str
    """why it cannot be read"""


@dataclass(frozen=True)
class PublishedPart:
    """A file that readers of the output use, and the file of the run that it was moved from."""

    key: str
    """key in the output, such as `predictions/date=DATE/part-001-000000.parquet`"""
    of: str
    """key of the same file in the folder of the run, before it was published"""
    bytes: int
    """size of the file"""
    sha256: str
    """digest of its content, in hexadecimal digits"""


@dataclass(frozen=True)
class EarlierNight:
    """The night before, with which the report compares a night."""

    date: str
    """YYYY-MM-DD"""
    model_version: str
    """version of the model that classified it"""
    counts: NightCounts
    """its counts"""


_DriftJson = Annotated[Drift, PlainValidator(Drift.from_json), PlainSerializer(Drift.to_json)]
_ShadowJson = Annotated[
    ShadowAgreement, PlainValidator(ShadowAgreement.from_json), PlainSerializer(ShadowAgreement.to_json)
]


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """Everything that a finished nightly run reports, written to `manifest.json` after all its results."""

    fingerprint: str
    """fingerprint of the plan"""
    date: str
    """date of the night, YYYY-MM-DD"""
    run: str
    """name of the run: its folder in the output is `_runs/RUN`"""
    format: int = FORMAT
    """format of the manifest"""
    output: str
    """URI of the output"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classified"""
    classes: tuple[str, ...]
    """classes of the model, in its order"""
    seconds: float
    """time in which at least one shard was being computed"""
    drift: tuple[_DriftJson, ...]
    """drift from the training documents by property; empty where there is no reference or no prediction"""
    before: EarlierNight | None
    """the night before, if the output holds one of this format; null in JSON if not"""
    shadow: _ShadowJson | None = None
    """agreement with the shadow; None, and absent from JSON, for a night without one"""
    inputs: tuple[InputFile, ...]
    """input files that were read"""
    skipped: tuple[InputFile, ...]
    """input files that an earlier night has already classified"""
    quarantined: tuple[QuarantinedFile, ...]
    """input files that could not be read, by URI"""
    counts: NightCounts
    """counts over all shards of the files in `inputs`"""
    parts: tuple[PublishedPart, ...]
    """files to publish"""
    shards: tuple[StoredOutcome[ClassifyCounts], ...]
    """all shards, in the order of the plan, including those of quarantined files"""

    def to_json(self) -> dict[str, object]:
        """Return the content of `manifest.json`."""
        return {"stage": STAGE, "before": None, **to_json(self)}

    def report_json(self) -> dict[str, object]:
        """Return the content of `report.json`: the manifest without its shards and parts."""
        return {name: value for name, value in self.to_json().items() if name not in ("shards", "parts")}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> RunManifest:
        """Return the manifest of a record that `to_json` returned, of this format."""
        return from_json(cls, {"before": None, **value})
