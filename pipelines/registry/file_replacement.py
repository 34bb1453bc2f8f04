"""Files in MLflow that are replaced after they were logged, which is done only to forget documents.

The digest of what will be there is announced before a file is written and settled after it, so that a version can be
loaded, with the old file or the new one, wherever a process ends in between. Each of these writes is made under a lease
that is confirmed just before: a process that was suspended meanwhile changes nothing that its successor has written.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.registry import evaluation_set, packaging, signatures
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.versions import ARTIFACT_TAG, NEXT, TAGS, Registry
from pipelines.storage.lease import Lease
from spin.errors import UserError

_PARTS = {TAGS[part]: signatures.PARTS[part] for part in ("model", "artifact")}
"""folder in the logged model by the tag with its digest: the digest of the artifact is announced last"""

_log = logging.getLogger(__name__)


def replace_version_file(
    registry: Registry, number: str, name: str, rewrite: Callable[[bytes], bytes | None], lease: Lease | None
) -> bool:
    """Replace a file of the artifact of a version by what `rewrite` makes of it, and return whether that differs.

    A version without this file, or one whose file `rewrite` returns None for, stays as it is. A signed version is
    signed again. Without a lease, nothing is changed. Raises HeldError once another process has the lease, and
    UserError where the files of the version are not those that were registered, or not those that the key in
    `registry.sign` has signed. `registry.verify` refuses no version here: one that is not signed names documents, too.
    """
    with tempfile.TemporaryDirectory() as scratch:
        artifact = Path(scratch) / "artifact"
        registry.download(number, artifact, verify=False)
        content = rewrite((artifact / name).read_bytes()) if (artifact / name).is_file() else None
        if lease is None:
            return content is not None
        _settle(registry, number, packaging.folder_digest(artifact), lease)
        if content is not None:
            model = registry.download_model(number, Path(scratch), verify=False)
            key = _own_key(registry, number, model)
            (model / packaging.SPIN / name).write_bytes(content)
            if key is not None:
                # guarded by test_a_signed_version_is_signed_again
                _sign(registry, number, model, key, lease)
            digest = _announce(registry, number, model, lease)
            _upload(registry, number, model / packaging.SPIN / name, packaging.SPIN, lease)
            _settle(registry, number, digest, lease)
    return content is not None


def require_signing_key(registry: Registry, number: str, name: str, rewrite: Callable[[bytes], bytes | None]) -> None:
    """Raise UserError where `replace_version_file` would change a signed version, and could not sign it again.

    Versions that cannot be read are passed over.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if registry.fetch_signatures(number, Path(scratch)) is None:
            return
        try:
            if not replace_version_file(registry, number, name, rewrite, None):
                return
            model = registry.download_model(number, Path(scratch), verify=False)
        except UserError:
            _log.debug("version %s of %s cannot be read", number, registry.name, exc_info=True)
            return
        try:
            key = _own_key(registry, number, model)
            if key is not None:
                signatures.sign_model(model, Path(scratch) / "new", key, registry.settings.registry.verify)
        except UserError as error:
            raise UserError(
                f"{error}; nothing was changed, since the {name} of version {number} of {registry.name} names "
                "documents that are to be forgotten"
            ) from None


def replace_evaluation_set(
    registry: Registry, rewrite: Callable[[EvaluationSet], EvaluationSet], lease: Lease | None
) -> int:
    """Replace the frozen set by what `rewrite` leaves of it, and return the number of documents that are removed.

    Without a lease, nothing is changed. Raises HeldError once another process has the lease.
    """
    frozen, client = registry.evaluation_set(), registry.tracking.client
    left = rewrite(frozen)
    removed = len(frozen) - len(left)
    if lease is not None:
        with registry.tracking.session():
            evaluation_set.settle_frozen(client, registry.name, registry.tags(), frozen, lease)
            if removed:
                evaluation_set.replace_frozen(client, registry.name, registry.tags(), left, lease)
    return removed


def replace_night_files(
    registry: Registry, name: str, rewrite: Callable[[str], Mapping[str, str] | None], lease: Lease | None
) -> int:
    """Replace files of the runs of nights, and return the number of runs whose files differ.

    `rewrite` returns for the text of the file `name` of a run the texts of the files that replace others, by name, or
    None to keep all. Runs that were deleted in MLflow and not yet removed are among them. Without a lease, nothing is
    changed. Raises HeldError once another process has the lease.
    """
    changed = 0
    for run in (each.info.run_id for each in registry.search_runs("tags.`spin.night` != ''")):
        text = registry.read_run_file(run, name)
        files = None if text is None else rewrite(text)
        changed += files is not None
        if lease is None or files is None:
            continue
        with registry.tracking.session():
            for file, content in sorted(files.items(), key=lambda pair: pair[0] == name):  # what is looked at: last
                lease.check()
                registry.tracking.client.log_text(run, content, file)
    return changed


def _announce(registry: Registry, number: str, model: Path, lease: Lease) -> str:
    """Tag a version with the digests that its files will have; return that of its artifact."""
    digests = {tag: packaging.folder_digest(model / part) for tag, part in _PARTS.items()}
    with registry.tracking.session():
        lease.check()
        for tag, digest in digests.items():
            registry.tracking.client.set_model_version_tag(registry.name, number, tag + NEXT, digest)
    return digests[ARTIFACT_TAG]


def _own_key(registry: Registry, number: str, model: Path) -> str | None:
    """The private key that a version was signed by, None for one that is not signed.

    Raises UserError unless that is the key of the settings: nothing is signed that this key has not signed before.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = registry.fetch_signatures(number, Path(scratch))
        if found is None:
            return None
        version, key = f"version {number} of {registry.name}", registry.settings.registry.sign
        if key is None:
            raise UserError(f"{version} is signed; let registry.sign name the private key, which signs it again")
        public_key = Path(scratch) / "key.pub"
        signatures.write_public_key(key, public_key)
        fault = signatures.find_fault("model", model, found, str(public_key))
    if fault is not None:
        raise UserError(
            f"{version} is not signed again, since it was not signed by {key} of registry.sign: it {fault}; let "
            f"registry.sign name the key that has signed it, or delete its folder {signatures.FOLDER}: it is then one "
            "that is not signed"
        )
    return key


def _sign(registry: Registry, number: str, model: Path, key: str, lease: Lease) -> None:
    """Add signatures of the new files of a version to those of the old ones."""
    with tempfile.TemporaryDirectory() as scratch:
        signatures.sign_model(model, Path(scratch) / "new", key, registry.settings.registry.verify)
        for file in sorted((Path(scratch) / "new").iterdir()):
            _upload(registry, number, file, signatures.FOLDER, lease)


def _upload(registry: Registry, number: str, file: Path, folder: str, lease: Lease) -> None:
    """Write a file to a folder of the logged model of a version, where it may replace one."""
    with registry.tracking.session():
        client = registry.tracking.client
        model_id = client.get_model_version(registry.name, number).source.removeprefix("models:/")
        lease.check()
        client.log_model_artifact(model_id, str(file), folder)


def _settle(registry: Registry, number: str, digest: str, lease: Lease) -> None:
    """End the replacement of a file of a version, if one was begun, given the digest that its artifact has.

    Where that is the announced one, the announced digests become those of the version.
    """
    with registry.tracking.session():
        client = registry.tracking.client
        tags = client.get_model_version(registry.name, number).tags
        announced = {tag: tags[tag + NEXT] for tag in _PARTS if tag + NEXT in tags}
        lease.check()
        if announced.get(ARTIFACT_TAG) == digest:
            for tag, each in announced.items():
                client.set_model_version_tag(registry.name, number, tag, each)
        for tag in announced:
            client.delete_model_version_tag(registry.name, number, tag + NEXT)
