"""Digests and failures as the messages that carry them."""

from collector_core.hashing.digest import FileHash
from collector_core.hashing.errors import HashError, HashErrorKind
from daemoneye.common.v1 import analysis_pb2, common_pb2

__all__ = ["to_error_kind", "to_failed_result", "to_hash_result", "to_hash_results"]

SHA256, BLAKE3, SSDEEP = "sha256", "blake3", "ssdeep"


def to_hash_results(found: FileHash, path: str) -> tuple[common_pb2.HashResult, ...]:
    """Returns one message for each digest, the identity first.

    Args:
        found: the digests.
        path: as it was asked for, by the text rule of common.proto.
    """
    texts = {SHA256: found.sha256, BLAKE3: found.blake3, SSDEEP: found.fuzzy}
    return tuple(
        common_pb2.HashResult(hash_value=text, algorithm=name, file_path=path, success=True)
        for name, text in texts.items()
        if text is not None
    )


def to_hash_result(found: FileHash, path: str, algorithm: str) -> common_pb2.HashResult | None:
    """Returns the digest by one algorithm; None when there is no such digest."""
    results = to_hash_results(found, path)
    return next((one for one in results if one.algorithm == algorithm), None)


def to_failed_result(error: HashError, path: str, algorithm: str) -> common_pb2.HashResult:
    """Returns the message that says why there is no digest, as far as a peer may know."""
    return common_pb2.HashResult(
        algorithm=algorithm, file_path=path, success=False, error_message=error.sentence
    )


def to_error_kind(kind: HashErrorKind) -> analysis_pb2.AnalysisErrorKind.ValueType:
    """Returns the kind as an analysis answers with it."""
    return analysis_pb2.AnalysisErrorKind.Value(f"ANALYSIS_ERROR_KIND_{kind.name}")
